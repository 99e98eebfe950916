//! What is written is read back, and nothing else is read.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn what_is_encoded_is_read_back(entry in entry()) {
        let (key, value) = entry.encode().unwrap();
        prop_assert!(key.is_ascii() && value.is_ascii());
        prop_assert_eq!(Entry::parse(&key, &value), Ok(Some(entry)));
    }

    #[test]
    fn any_text_is_parsed_without_panic(kind in "(peer|link|ring|name|mac|net)?/?", key: String, value: String) {
        let _ = Entry::parse(&format!("{kind}{key}"), &value);
    }

    #[test]
    fn damaged_values_are_parsed_without_panic(entry in entry(), at: prop::sample::Index, with: char) {
        let (key, value) = entry.encode().unwrap();
        let mut damaged: Vec<char> = value.chars().collect();
        if !damaged.is_empty() {
            *at.get_mut(&mut damaged) = with;
        }
        let _ = Entry::parse(&key, &damaged.into_iter().collect::<String>());
    }
}

#[test]
fn keys_of_newer_versions_are_skipped() {
    assert_eq!(Entry::parse("colour/00:11", "x=1"), Ok(None));
    assert_eq!(Entry::parse("", ""), Ok(None));
}

#[test]
fn fields_of_newer_versions_are_skipped() {
    let value = "digest=ab colour=red";
    let read = Entry::parse("ring/10.32.0.0%2f12", value);
    let ring = Entry::Ring("10.32.0.0/12".into(), "ab".into());
    assert_eq!(read, Ok(Some(ring)));
}

#[test]
fn another_spelling_of_a_key_is_refused() {
    for key in [
        "peer/",
        "peer/x",
        "link",
        "link/::1",
        "link/00:00:00:00:00:0A",
        "ring/%41",
        "ring/10.32.0.0/12",
        "name/a/b",
        "name/a/b/10.0.0.01",
        "name/a/b/::0:1",
        "name/a/b/10.0.0.1/",
        "net/default",
        "net/blue",
        "net/subnet:10.0.0.0/8",
        "net/subnet:10.0.0.1%2f8",
        "mac/0",
        "mac/00/02:00:00:00:00:01",
        "mac/0/02:00:00:00:00:0A",
        "mac/16777216/02:00:00:00:00:01",
        "mac/0/03:00:00:00:00:01",
    ] {
        assert_eq!(Entry::parse(key, ""), Err(ParseEntryError::Key), "{key}");
    }
}

#[test]
fn missing_and_wrong_fields_are_named() {
    let key = "link/00:00:00:00:00:01";
    let parse = |value| Entry::parse(key, value);
    assert_eq!(parse(""), Err(ParseEntryError::Missing("established")));
    assert_eq!(
        parse("established=2"),
        Err(ParseEntryError::Field("established"))
    );
    let value = "established=1 outbound=0 address=nowhere";
    assert_eq!(parse(value), Err(ParseEntryError::Field("address")));
}

#[test]
fn entries_others_could_not_read_are_not_encoded() {
    let name = |fqdn: String| Entry::Name {
        fqdn,
        container: "c".into(),
        addr: [10, 32, 0, 1].into(),
    };
    let long = name("x".repeat(MAX_KEY)).encode();
    assert!(matches!(long, Err(EncodeEntryError::KeyTooLong(_))));
    let ring = Entry::Ring("10.32.0.0/12".into(), "ABC".into()).encode();
    let wrong = ParseEntryError::Field("digest");
    assert_eq!(ring, Err(EncodeEntryError::Unreadable(wrong)));
    let mut info = info(7);
    info.version = "v".repeat(MAX_VALUE);
    let long = Entry::Peer(info.clone()).encode();
    assert!(matches!(long, Err(EncodeEntryError::ValueTooLong(_))));
    info.version = "v".repeat(PeerInfo::MAX_VERSION + 1);
    assert!(Entry::Peer(info.clone()).encode().is_err());
    info.version = String::new();
    info.addresses = vec![([10, 0, 0, 1], 6783).into(); PeerInfo::MAX_ADDRESSES + 1];
    assert!(Entry::Peer(info).encode().is_err());
    let binding = Binding {
        registered: true,
        addresses: vec![[10, 32, 0, 1].into(); Binding::MAX_ADDRESSES + 1],
    };
    let mac = MacAddr::from_bytes([2, 0, 0, 0, 0, 1]);
    let many = Entry::Mac(Network::DEFAULT, mac, binding.clone());
    assert!(many.encode().is_err());
    let none = Binding {
        addresses: Vec::new(),
        ..binding
    };
    let group = Entry::Mac(Network::DEFAULT, MacAddr::BROADCAST, none);
    assert!(group.encode().is_err());
}

/// What a peer with this uid says of itself, for tests.
pub(crate) fn info(uid: u64) -> PeerInfo {
    PeerInfo {
        nickname: Nickname::new("host a"),
        uid: PeerUid(uid),
        port: 6783,
        addresses: vec![([192, 0, 2, 1], 6783).into()],
        mtu: 1376,
        version: "0.1.0".into(),
        started: 1_700_000_000,
    }
}

fn address() -> impl Strategy<Value = SocketAddr> {
    any::<(IpAddr, u16)>().prop_map(SocketAddr::from)
}

fn peer() -> impl Strategy<Value = PeerName> {
    any::<[u8; 6]>().prop_map(PeerName::from_bytes)
}

prop_compose! {
    fn peer_info()(
        nickname: String, uid: u64, port: u16, mtu: u16, started: u64,
        addresses in vec(address(), 0..5), version in "[^\\p{Cc}]{0,12}",
    ) -> PeerInfo {
        let nickname = Nickname::new(&nickname);
        PeerInfo { nickname, uid: PeerUid(uid), port, addresses, mtu, version, started }
    }
}

prop_compose! {
    fn mac_entry()(
        network: [u8; 3], mac: [u8; 6], registered: bool, addresses in vec(any::<IpAddr>(), 0..5),
    ) -> Entry {
        let [first, rest @ ..] = mac;
        let [b, c, d, e, f] = rest;
        let mac = MacAddr::from_bytes([first & !1, b, c, d, e, f]);
        Entry::Mac(Network::from_bytes(network), mac, Binding { registered, addresses })
    }
}

fn entry() -> impl Strategy<Value = Entry> {
    let link = (
        any::<(bool, bool, bool)>(),
        address(),
        proptest::option::of(address()),
    )
        .prop_map(
            |((established, outbound, relayed), address, datagrams)| Link {
                established,
                outbound,
                address,
                datagrams,
                relayed,
            },
        );
    prop_oneof![
        peer_info().prop_map(Entry::Peer),
        (peer(), link).prop_map(|(peer, link)| Entry::Link(peer, link)),
        ("\\PC{0,40}", "[0-9a-f]{1,32}").prop_map(|(pool, digest)| Entry::Ring(pool, digest)),
        ("\\PC{0,60}", "\\PC{0,40}", any::<IpAddr>()).prop_map(|(fqdn, container, addr)| {
            Entry::Name {
                fqdn,
                container,
                addr,
            }
        }),
        mac_entry(),
        "(name|swarm):[a-z0-9._-]{1,64}|subnet:10\\.[1-9]\\.0\\.0/16"
            .prop_map(|key| Entry::Network(key.parse().unwrap())),
    ]
}
