//! The name table: what every peer says its containers are called.
//!
//! A peer can change and remove its own records only, and have so many and no more, so none can change
//! or crowd out the names of another. The table is made to be cloned after every change: a clone
//! shares nearly everything with the table it was made from (see [`Shards`]).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use thiserror::Error;
use weft_wire::PeerName;

use crate::Name;
use crate::shards::{Left, Shards};

/// One address by which one container answers to one name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// What it is called.
    pub name: Name,
    /// Whose name it is; the record goes when that container does.
    pub container: String,
    /// The peer that published it.
    pub origin: PeerName,
    /// What the name stands for.
    pub addr: IpAddr,
}

/// Which own records are meant: those that match all that is given, so the default means every one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// Records of this container.
    pub container: Option<String>,
    /// Records of this name.
    pub name: Option<Name>,
    /// Records with this address.
    pub addr: Option<IpAddr>,
}

impl Filter {
    fn matches(&self, record: &Record) -> bool {
        self.container
            .as_ref()
            .is_none_or(|container| *container == record.container)
            && self.name.as_ref().is_none_or(|name| *name == record.name)
            && self.addr.is_none_or(|addr| addr == record.addr)
    }
}

/// An own record there is no room for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AddError {
    /// Other peers would not take it either.
    #[error(
        "{name} is not added: this peer has {limit} names already, and no peer may have more; remove some with `weft dns-remove`"
    )]
    TooMany {
        /// The name that was to be added.
        name: Name,
        /// The most records a peer may have.
        limit: usize,
    },
}

/// A published record that is not taken over.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SetError {
    /// The bound that keeps one peer from filling everybody's memory.
    #[error("{name} of {origin} is ignored: that peer has {limit} names already")]
    TooMany {
        /// The name that was published.
        name: Name,
        /// Who published it.
        origin: PeerName,
        /// The most records a peer may have.
        limit: usize,
    },
    /// Only we ourselves say what our containers are called.
    #[error("{name} is ignored: it was published in our name, but not by us")]
    Ours {
        /// The name that was published.
        name: Name,
    },
}

/// What all peers say their containers are called.
///
/// Invariant: `names` and `addresses` hold the same records; `counts` says how many each origin has of
/// them and lists no origin without any.
#[derive(Debug, Clone)]
pub struct NameTable {
    us: PeerName,
    names: Shards<Name, Entry>,
    addresses: Shards<IpAddr, Records>,
    counts: BTreeMap<PeerName, usize>,
}

/// Records in ascending order, each once.
type Records = Vec<Arc<Record>>;

/// What is known of a name.
///
/// Invariant: an entry in the table has a record or names under it, so that it exists in the sense of
/// DNS (RFC 8020).
#[derive(Debug, Clone, Default)]
struct Entry {
    records: Records,
    /// How many records there are of names under this one.
    under: usize,
}

impl NameTable {
    /// The most records of one origin: far more than one host has containers, and a few megabytes.
    pub const MAX_PER_ORIGIN: usize = 16_384;

    /// An empty table of the peer `us`.
    pub fn new(us: PeerName) -> Self {
        Self {
            us,
            names: Shards::new(),
            addresses: Shards::new(),
            counts: BTreeMap::new(),
        }
    }

    /// Adds a record of our own. The record is returned if it is new, to be published.
    pub fn add_own(
        &mut self,
        name: Name,
        container: &str,
        addr: IpAddr,
    ) -> Result<Option<Record>, AddError> {
        let record = Record {
            name,
            container: container.to_owned(),
            origin: self.us,
            addr,
        };
        match self.insert(record.clone()) {
            Ok(added) => Ok(added.then_some(record)),
            Err(Full) => Err(AddError::TooMany {
                name: record.name,
                limit: Self::MAX_PER_ORIGIN,
            }),
        }
    }

    /// Removes our own records that match; returned, to be withdrawn.
    pub fn remove_own(&mut self, filter: &Filter) -> Vec<Record> {
        self.remove_all(|record, us| record.origin == us && filter.matches(record))
    }

    /// Takes over what another peer published; `false` if it was known.
    pub fn set(&mut self, record: Record) -> Result<bool, SetError> {
        let (name, origin) = (record.name.clone(), record.origin);
        if origin == self.us {
            return Err(SetError::Ours { name });
        }
        self.insert(record).map_err(|Full| SetError::TooMany {
            name,
            origin,
            limit: Self::MAX_PER_ORIGIN,
        })
    }

    /// Drops what another peer withdrew; `false` if it was not known. Our own names stay.
    pub fn unset(&mut self, origin: PeerName, name: &Name, container: &str, addr: IpAddr) -> bool {
        let record = Record {
            name: name.clone(),
            container: container.to_owned(),
            origin,
            addr,
        };
        origin != self.us && self.remove(&record)
    }

    /// Drops all names of a peer that is gone and returns how many there were. Our own names stay.
    pub fn drop_origin(&mut self, origin: PeerName) -> usize {
        if origin == self.us || !self.counts.contains_key(&origin) {
            return 0;
        }
        self.remove_all(|record, _| record.origin == origin).len()
    }

    /// Every record, by name.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records_where(|_| true).into_iter()
    }

    /// Our own records, by name.
    pub fn own(&self) -> impl Iterator<Item = &Record> {
        self.records_where(|record| record.origin == self.us)
            .into_iter()
    }

    /// All addresses of a name, each once, in ascending order; none if nobody has that name.
    pub fn lookup(&self, name: &Name) -> Vec<IpAddr> {
        let records = self.names.find(name).map(|entry| &entry.records);
        let mut addresses: Vec<IpAddr> = records
            .into_iter()
            .flatten()
            .map(|record| record.addr)
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// All names of an address, each once, in order; none if no container has a name for it.
    pub fn reverse(&self, addr: IpAddr) -> Vec<Name> {
        let records = self.addresses.find(&addr).into_iter().flatten();
        let mut names: Vec<Name> = records.map(|record| record.name.clone()).collect();
        names.dedup();
        names
    }

    /// Whether there are records of this name, or of names under it.
    pub(crate) fn exists(&self, name: &Name) -> bool {
        self.names.find(name).is_some()
    }

    fn records_where(&self, wanted: impl Fn(&Record) -> bool) -> Vec<&Record> {
        let all = self
            .names
            .values()
            .flat_map(|entry| &entry.records)
            .map(|record| &**record);
        let mut found: Vec<&Record> = all.filter(|record| wanted(record)).collect();
        found.sort_unstable();
        found
    }

    fn remove_all(&mut self, unwanted: impl Fn(&Record, PeerName) -> bool) -> Vec<Record> {
        let found = self.records_where(|record| unwanted(record, self.us));
        let found: Vec<Record> = found.into_iter().cloned().collect();
        for record in &found {
            self.remove(record);
        }
        found
    }

    fn contains(&self, record: &Record) -> bool {
        let entry = self.names.find(&record.name);
        entry.is_some_and(|entry| search(&entry.records, record).is_ok())
    }

    fn insert(&mut self, record: Record) -> Result<bool, Full> {
        if self.contains(&record) {
            return Ok(false);
        }
        let count = self.counts.get(&record.origin).copied().unwrap_or(0);
        if count >= Self::MAX_PER_ORIGIN {
            return Err(Full);
        }
        self.counts.insert(record.origin, count + 1);
        let record = Arc::new(record);
        self.names.change(&record.name, |entry| {
            put(&mut entry.records, &record);
            entry.left()
        });
        for parent in record.name.parents() {
            self.names.change(&parent, |entry| {
                entry.under += 1;
                entry.left()
            });
        }
        self.addresses.change(&record.addr, |records| {
            put(records, &record);
            Left::Something
        });
        Ok(true)
    }

    fn remove(&mut self, record: &Record) -> bool {
        if !self.contains(record) {
            return false;
        }
        self.names.change(&record.name, |entry| {
            take(&mut entry.records, record);
            entry.left()
        });
        for parent in record.name.parents() {
            self.names.change(&parent, |entry| {
                entry.under = entry.under.saturating_sub(1);
                entry.left()
            });
        }
        self.addresses.change(&record.addr, |records| {
            take(records, record);
            if records.is_empty() {
                Left::Nothing
            } else {
                Left::Something
            }
        });
        let count = self.counts.remove(&record.origin).unwrap_or(0);
        if count > 1 {
            self.counts.insert(record.origin, count - 1);
        }
        true
    }

    /// Checks the invariants.
    #[cfg(test)]
    fn check(&self) {
        let mut counts = BTreeMap::new();
        let mut under: BTreeMap<Name, usize> = BTreeMap::new();
        for record in self.records() {
            *counts.entry(record.origin).or_default() += 1;
            record
                .name
                .parents()
                .for_each(|parent| *under.entry(parent).or_default() += 1);
        }
        assert_eq!(counts, self.counts);
        assert!(
            self.names
                .values()
                .all(|entry| entry.left() == Left::Something)
        );
        assert!(
            self.names
                .values()
                .all(|entry| entry.records.is_sorted_by(|a, b| a < b))
        );
        let all_under: usize = self.names.values().map(|entry| entry.under).sum();
        assert_eq!(all_under, under.values().sum());
        for (parent, count) in under {
            assert_eq!(
                self.names.find(&parent).map(|entry| entry.under),
                Some(count)
            );
        }
        assert!(self.addresses.values().all(|records| !records.is_empty()));
        let mut by_address: Vec<&Record> = self
            .addresses
            .values()
            .flatten()
            .map(|record| &**record)
            .collect();
        by_address.sort_unstable();
        assert!(by_address.into_iter().eq(self.records()));
    }
}

impl Entry {
    fn left(&self) -> Left {
        if self.records.is_empty() && self.under == 0 {
            Left::Nothing
        } else {
            Left::Something
        }
    }
}

/// There is no room for a further record of that origin.
struct Full;

fn search(records: &Records, record: &Record) -> Result<usize, usize> {
    records.binary_search_by(|other| (**other).cmp(record))
}

fn put(records: &mut Records, record: &Arc<Record>) {
    if let Err(at) = search(records, record) {
        records.insert(at, record.clone());
    }
}

fn take(records: &mut Records, record: &Record) {
    if let Ok(at) = search(records, record) {
        records.remove(at);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::Domain;

    #[test]
    fn a_name_stands_for_all_addresses_of_all_peers() {
        let mut table = NameTable::new(peer(1));
        assert!(table.add_own(name("web"), "c1", addr(3)).unwrap().is_some());
        assert_eq!(table.set(record("web", "c2", 2, 1)), Ok(true));
        assert_eq!(table.set(record("web", "c3", 3, 2)), Ok(true));
        assert_eq!(table.set(record("web", "c4", 3, 2)), Ok(true));
        assert_eq!(table.lookup(&name("WEB")), [addr(1), addr(2), addr(3)]);
        assert!(table.lookup(&name("db")).is_empty());
        assert_eq!(table.reverse(addr(2)), [name("web")]);
        assert_eq!(table.own().count(), 1);
        assert_eq!(table.records().count(), 4);
    }

    #[test]
    fn adding_twice_publishes_once() {
        let mut table = NameTable::new(peer(1));
        let first = table.add_own(name("web"), "c1", addr(1)).unwrap();
        assert_eq!(first, Some(record("web", "c1", 1, 1)));
        assert_eq!(table.add_own(name("web"), "c1", addr(1)), Ok(None));
        assert_eq!(table.set(record("db", "c2", 2, 2)), Ok(true));
        assert_eq!(table.set(record("db", "c2", 2, 2)), Ok(false));
    }

    #[test]
    fn own_records_are_removed_by_any_mix_of_container_name_and_address() {
        let mut table = NameTable::new(peer(1));
        for (text, container, last) in [
            ("web", "c1", 1),
            ("web", "c2", 2),
            ("db", "c1", 1),
            ("db", "c1", 3),
        ] {
            table.add_own(name(text), container, addr(last)).unwrap();
        }
        table.set(record("web", "c1", 2, 1)).unwrap();
        let both = Filter {
            container: Some("c1".into()),
            addr: Some(addr(1)),
            name: None,
        };
        let removed = table.remove_own(&both);
        assert_eq!(
            removed,
            [record("db", "c1", 1, 1), record("web", "c1", 1, 1)]
        );
        assert_eq!(
            table.lookup(&name("web")),
            [addr(1), addr(2)],
            "the other peer's record stays"
        );
        let named = Filter {
            name: Some(name("DB.weft.local")),
            ..Filter::default()
        };
        assert_eq!(table.remove_own(&named), [record("db", "c1", 1, 3)]);
        assert_eq!(table.remove_own(&Filter::default()).len(), 1);
        assert_eq!(table.own().count(), 0);
        table.check();
    }

    #[test]
    fn an_address_keeps_its_name_while_one_container_still_has_both() {
        let mut table = NameTable::new(peer(1));
        table.set(record("web", "c1", 2, 1)).unwrap();
        table.set(record("web", "c2", 2, 1)).unwrap();
        assert!(table.unset(peer(2), &name("web"), "c1", addr(1)));
        assert_eq!(table.reverse(addr(1)), [name("web")]);
        assert!(table.unset(peer(2), &name("web"), "c2", addr(1)));
        assert!(!table.unset(peer(2), &name("web"), "c2", addr(1)));
        assert!(table.reverse(addr(1)).is_empty());
    }

    #[test]
    fn the_names_of_a_peer_go_together_and_ours_never_from_outside() {
        let mut table = NameTable::new(peer(1));
        table.add_own(name("web"), "c1", addr(1)).unwrap();
        table.set(record("web", "c2", 2, 2)).unwrap();
        table.set(record("db", "c2", 2, 3)).unwrap();
        assert_eq!(table.drop_origin(peer(2)), 2);
        assert_eq!(table.drop_origin(peer(2)), 0);
        assert_eq!(table.drop_origin(peer(1)), 0);
        assert!(!table.unset(peer(1), &name("web"), "c1", addr(1)));
        assert_eq!(
            table.set(record("x", "c1", 1, 9)),
            Err(SetError::Ours { name: name("x") })
        );
        assert_eq!(
            table.records().cloned().collect::<Vec<_>>(),
            [record("web", "c1", 1, 1)]
        );
    }

    #[test]
    fn one_peer_cannot_fill_the_table_nor_take_the_room_of_another() {
        let mut table = NameTable::new(peer(1));
        for n in 0..NameTable::MAX_PER_ORIGIN {
            table.set(record(&format!("n{n}"), "c", 2, 1)).unwrap();
        }
        let over = table.set(record("over", "c", 2, 1)).unwrap_err();
        assert!(
            matches!(over, SetError::TooMany { limit: 16_384, .. }),
            "{over}"
        );
        assert_eq!(
            table.set(record("n7", "c", 2, 1)),
            Ok(false),
            "what is known is no news"
        );
        assert_eq!(table.set(record("over", "c", 3, 1)), Ok(true));
        assert!(table.add_own(name("mine"), "c", addr(1)).unwrap().is_some());
    }

    #[test]
    fn a_clone_does_not_see_what_changes_later() {
        let mut table = NameTable::new(peer(1));
        table.set(record("web", "c", 2, 1)).unwrap();
        let copy = table.clone();
        table.set(record("web", "c", 2, 2)).unwrap();
        table.add_own(name("db"), "c", addr(3)).unwrap();
        assert_eq!(copy.lookup(&name("web")), [addr(1)]);
        assert_eq!(copy.records().count(), 1);
    }

    #[test]
    fn a_parent_of_names_is_known_without_an_address() {
        let mut table = NameTable::new(peer(1));
        table.set(record("a.sub.weft.local", "c", 2, 1)).unwrap();
        table.set(record("b", "c", 3, 1)).unwrap();
        assert!(table.exists(&name("sub")) && table.lookup(&name("sub")).is_empty());
        assert!(!table.exists(&name("su")) && !table.exists(&name("x.b.weft.local")));
        table.set(record("sub", "c", 2, 2)).unwrap();
        assert!(table.unset(peer(2), &name("a.sub.weft.local"), "c", addr(1)));
        assert!(table.exists(&name("sub")));
        assert!(table.unset(peer(2), &name("sub"), "c", addr(2)));
        assert!(!table.exists(&name("sub")));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Set(Record),
        Unset(Record),
        Drop(PeerName),
        RemoveOwn(Filter),
    }

    proptest! {
        #[test]
        fn the_table_is_the_set_of_records_it_was_given(steps in prop::collection::vec(step(), 0..60)) {
            let mut table = NameTable::new(peer(0));
            let mut model: BTreeSet<Record> = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Set(r) if r.origin == peer(0) => {
                        let added = table.add_own(r.name.clone(), &r.container, r.addr).unwrap();
                        prop_assert_eq!(added.is_some(), model.insert(r));
                    }
                    Step::Set(r) => prop_assert_eq!(table.set(r.clone()).unwrap(), model.insert(r)),
                    Step::Unset(r) => {
                        let known = r.origin != peer(0) && model.remove(&r);
                        prop_assert_eq!(table.unset(r.origin, &r.name, &r.container, r.addr), known);
                    }
                    Step::Drop(origin) => {
                        table.drop_origin(origin);
                        model.retain(|r| r.origin != origin || origin == peer(0));
                    }
                    Step::RemoveOwn(filter) => {
                        let removed = table.remove_own(&filter);
                        prop_assert!(removed.iter().all(|r| model.remove(r)));
                        prop_assert!(!model.iter().any(|r| r.origin == peer(0) && filter.matches(r)));
                    }
                }
                table.check();
                prop_assert!(table.records().eq(model.iter()));
            }
        }
    }

    fn step() -> impl Strategy<Value = Step> {
        let text = prop::sample::select(vec!["a", "b", "x.a.weft.local"]);
        let records = (text, "[cd]", 0_u8..3, 0_u8..3).prop_map(|(t, c, o, a)| record(t, &c, o, a));
        (records, 0..4, any::<[bool; 3]>()).prop_map(|(r, kind, [c, n, a])| match kind {
            0 => Step::Set(r),
            1 => Step::Unset(r),
            2 => Step::Drop(r.origin),
            _ => Step::RemoveOwn(Filter {
                container: c.then_some(r.container),
                name: n.then_some(r.name),
                addr: a.then_some(r.addr),
            }),
        })
    }

    fn record(text: &str, container: &str, origin: u8, last: u8) -> Record {
        Record {
            name: name(text),
            container: container.into(),
            origin: peer(origin),
            addr: addr(last),
        }
    }

    fn name(text: &str) -> Name {
        Name::new(text, &"weft.local".parse::<Domain>().unwrap()).unwrap()
    }

    fn peer(last: u8) -> PeerName {
        PeerName::from_bytes([2, 0, 0, 0, 0, last])
    }

    fn addr(last: u8) -> IpAddr {
        [10, 32, 0, last].into()
    }
}
