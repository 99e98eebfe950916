//! Reading a query: the header, the one question, and what the client says of itself by EDNS.
//!
//! ```text
//!  0                   2        4         6         8         10        12
//! +---------+---------+---------+---------+---------+---------+---------+------------------------
//! | id      | flags   | 1       | answers | author. | addit.  | question, then the records
//! +---------+---------+---------+---------+---------+---------+---------+------------------------
//! ```
//!
//! Of the records behind the question only the OPT pseudo-record matters to a server like this one.
//! The others are stepped over without being understood: what is not read cannot go wrong.

use hickory_proto::op::{self, Edns, Header, MessageType, Metadata, OpCode};
use hickory_proto::rr::{Name, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, DecodeError};

/// A query that can be answered.
#[derive(Debug)]
pub(crate) struct Query {
    /// Its id and flags.
    pub(crate) metadata: Metadata,
    /// What it asks, in the client's spelling.
    pub(crate) question: op::Query,
    /// What the client says of itself, if it speaks EDNS.
    pub(crate) edns: Option<Edns>,
}

/// Bytes that hold no query that can be answered.
#[derive(Debug)]
pub(crate) enum QueryError {
    /// Not even a header, or a response: to reply could start an endless exchange.
    NotAQuery,
    /// A query for some other operation than a look-up.
    Operation(Metadata),
    /// The header is there; what follows is not one question and complete records.
    Malformed(Metadata),
}

impl Query {
    /// Reads a query. Bytes behind the last record are left alone.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, QueryError> {
        let mut decoder = BinDecoder::new(bytes);
        let Header { metadata, counts } =
            Header::read(&mut decoder).map_err(|_| QueryError::NotAQuery)?;
        if metadata.message_type == MessageType::Response {
            return Err(QueryError::NotAQuery);
        }
        if metadata.op_code != OpCode::Query {
            return Err(QueryError::Operation(metadata));
        }
        if counts.queries != 1 {
            return Err(QueryError::Malformed(metadata));
        }
        let malformed = |_: DecodeError| QueryError::Malformed(metadata);
        let question = op::Query::read(&mut decoder).map_err(malformed)?;
        let records = [counts.answers, counts.authorities, counts.additionals];
        let mut edns = None;
        for _ in 0..records.into_iter().map(u32::from).sum() {
            let Some(found) = record(&mut decoder).map_err(malformed)? else {
                continue;
            };
            if edns.replace(found).is_some() {
                return Err(QueryError::Malformed(metadata));
            }
        }
        Ok(Self {
            metadata,
            question,
            edns,
        })
    }
}

/// Steps over one record; what it says if it is the OPT pseudo-record (RFC 6891 §6.1).
fn record(decoder: &mut BinDecoder<'_>) -> Result<Option<Edns>, DecodeError> {
    // Each of these values may be anything; the length is checked when the bytes are taken.
    Name::read(decoder)?;
    let kind = decoder.read_u16()?.unverified();
    let class = decoder.read_u16()?.unverified();
    let [_, version, flags, _] = decoder.read_u32()?.unverified().to_be_bytes();
    let length = decoder.read_u16()?.unverified();
    decoder.read_slice(usize::from(length))?;
    if RecordType::from(kind) != RecordType::OPT {
        return Ok(None);
    }
    let mut edns = Edns::new();
    edns.set_version(version)
        .set_max_payload(class)
        .set_dnssec_ok(flags & DNSSEC_OK != 0);
    Ok(Some(edns))
}

/// The one flag of EDNS, in the third byte of what is the TTL of other records (RFC 3225 §3).
const DNSSEC_OK: u8 = 0x80;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A query for the addresses of `a.`, id 1, with one more record: OPT, 1232 bytes, DO set.
    const QUERY: &[u8] = &[
        0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 1, b'a', 0, 0, 1, 0, 1, 0, 0, 41, 4, 208, 0, 0, 0x80,
        0, 0, 0,
    ];

    #[test]
    fn a_query_is_read_with_its_edns() {
        let query = Query::parse(QUERY).unwrap();
        assert_eq!(query.metadata.id, 1);
        assert_eq!(query.question.name().to_string(), "a.");
        let edns = query.edns.unwrap();
        assert_eq!(
            (edns.version(), edns.max_payload(), edns.flags().dnssec_ok),
            (0, 1232, true)
        );
    }

    #[test]
    fn a_query_cut_anywhere_behind_its_header_is_malformed() {
        for len in 0..QUERY.len() {
            match Query::parse(&QUERY[..len]) {
                Err(QueryError::NotAQuery) => assert!(len < 12),
                Err(QueryError::Malformed(metadata)) => assert!(len >= 12 && metadata.id == 1),
                other => panic!("{len} bytes: {other:?}"),
            }
        }
    }

    #[test]
    fn a_second_opt_record_is_malformed() {
        let mut twice = [QUERY, &QUERY[19..]].concat();
        twice[11] = 2;
        assert!(matches!(
            Query::parse(&twice),
            Err(QueryError::Malformed(_))
        ));
    }

    #[test]
    fn other_records_are_stepped_over() {
        let mut with = [QUERY, &[0, 0, 250, 0, 255, 0, 0, 0, 0, 0, 3, 1, 2, 3]].concat();
        with[11] = 2;
        assert_eq!(
            Query::parse(&with).unwrap().edns.unwrap().max_payload(),
            1232
        );
    }

    #[test]
    fn responses_and_other_operations_are_told_apart() {
        let with = |flags: u8| Query::parse(&[&[0, 1, flags], &QUERY[3..]].concat());
        assert!(matches!(with(0x80), Err(QueryError::NotAQuery)));
        assert!(
            matches!(with(0x28), Err(QueryError::Operation(_))),
            "an update"
        );
    }

    #[test]
    fn a_header_that_promises_much_costs_nothing() {
        let mut promise = [255_u8; 12];
        promise[2] = 0;
        assert!(matches!(
            Query::parse(&promise),
            Err(QueryError::Malformed(_))
        ));
        promise[4..6].copy_from_slice(&[0, 1]);
        assert!(matches!(
            Query::parse(&promise),
            Err(QueryError::Malformed(_))
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Query::parse(&bytes);
        }
    }
}
