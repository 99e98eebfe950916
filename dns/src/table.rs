//! The name table: what every peer says its containers are called.
//!
//! Records are kept apart by their origin, the peer that published them. Three things follow. A peer
//! can neither change nor crowd out the names of another; all names of a peer that is gone go at
//! once; and a clone of the table shares every part that does not change afterwards, so the resolver
//! can be handed a fresh copy whenever something did.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use thiserror::Error;
use weft_wire::PeerName;

use crate::Name;

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
/// Invariant: a part is never empty, and its records all have the origin it is filed under.
#[derive(Debug, Clone)]
pub struct NameTable {
    us: PeerName,
    parts: BTreeMap<PeerName, Arc<Part>>,
}

impl NameTable {
    /// The most records of one origin: far more than one host has containers, and a few megabytes.
    pub const MAX_PER_ORIGIN: usize = 16_384;

    /// An empty table of the peer `us`.
    pub fn new(us: PeerName) -> Self {
        Self {
            us,
            parts: BTreeMap::new(),
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
        let removed: Vec<Record> = self
            .own()
            .filter(|record| filter.matches(record))
            .cloned()
            .collect();
        for record in &removed {
            self.remove(record);
        }
        removed
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
        if origin == self.us {
            return 0;
        }
        self.parts.remove(&origin).map_or(0, |part| part.len)
    }

    /// Every record, by name.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        let mut all: Vec<&Record> = self
            .parts
            .values()
            .flat_map(|part| part.records())
            .collect();
        all.sort_unstable();
        all.into_iter()
    }

    /// Our own records, by name.
    pub fn own(&self) -> impl Iterator<Item = &Record> {
        self.parts
            .get(&self.us)
            .into_iter()
            .flat_map(|part| part.records())
    }

    /// All addresses of a name, each once, in ascending order; none if nobody has that name.
    pub fn lookup(&self, name: &Name) -> Vec<IpAddr> {
        let records = self
            .parts
            .values()
            .filter_map(|part| part.names.get(name))
            .flatten();
        let addresses: BTreeSet<IpAddr> = records.map(|record| record.addr).collect();
        addresses.into_iter().collect()
    }

    /// All names of an address, each once, in order; none if no container has a name for it.
    pub fn reverse(&self, addr: IpAddr) -> Vec<Name> {
        let names = self
            .parts
            .values()
            .filter_map(|part| part.addresses.get(&addr))
            .flatten();
        let names: BTreeSet<&Name> = names.collect();
        names.into_iter().cloned().collect()
    }

    /// Whether there are names under this one, which makes it exist in the sense of DNS even if it
    /// has no address (RFC 8020).
    pub(crate) fn has_under(&self, name: &Name) -> bool {
        self.parts.values().any(|part| part.has_under(name))
    }

    fn insert(&mut self, record: Record) -> Result<bool, Full> {
        let part = self.parts.entry(record.origin).or_default();
        if part.contains(&record) {
            return Ok(false);
        }
        if part.len >= Self::MAX_PER_ORIGIN {
            return Err(Full);
        }
        Arc::make_mut(part).insert(record);
        Ok(true)
    }

    fn remove(&mut self, record: &Record) -> bool {
        let Some(part) = self
            .parts
            .get_mut(&record.origin)
            .filter(|part| part.contains(record))
        else {
            return false;
        };
        Arc::make_mut(part).remove(record);
        if part.len == 0 {
            self.parts.remove(&record.origin);
        }
        true
    }

    /// Checks the invariants.
    #[cfg(test)]
    fn check(&self) {
        for (origin, part) in &self.parts {
            assert!(part.records().all(|record| record.origin == *origin));
            part.check();
        }
    }
}

/// There is no room for a further record of that origin.
struct Full;

/// The records of one origin.
///
/// Invariant: `len` counts the records in `names`; `addresses` has exactly their addresses, each with
/// exactly the names it occurs under; no set in either map is empty.
#[derive(Debug, Clone, Default)]
struct Part {
    names: BTreeMap<Name, BTreeSet<Record>>,
    addresses: BTreeMap<IpAddr, BTreeSet<Name>>,
    len: usize,
}

impl Part {
    fn records(&self) -> impl Iterator<Item = &Record> {
        self.names.values().flatten()
    }

    fn contains(&self, record: &Record) -> bool {
        self.names
            .get(&record.name)
            .is_some_and(|set| set.contains(record))
    }

    fn has_under(&self, name: &Name) -> bool {
        let not_before = self.names.range(name..).map(|(found, _)| found);
        not_before.take(2).any(|found| found.is_under(name))
    }

    fn insert(&mut self, record: Record) {
        self.addresses
            .entry(record.addr)
            .or_default()
            .insert(record.name.clone());
        self.names
            .entry(record.name.clone())
            .or_default()
            .insert(record);
        self.len += 1;
    }

    fn remove(&mut self, record: &Record) {
        let Some(set) = self.names.get_mut(&record.name) else {
            return;
        };
        self.len -= usize::from(set.remove(record));
        let address_stays = set.iter().any(|other| other.addr == record.addr);
        if set.is_empty() {
            self.names.remove(&record.name);
        }
        if address_stays {
            return;
        }
        if let Some(names) = self.addresses.get_mut(&record.addr) {
            names.remove(&record.name);
            if names.is_empty() {
                self.addresses.remove(&record.addr);
            }
        }
    }

    #[cfg(test)]
    fn check(&self) {
        assert_eq!(self.records().count(), self.len);
        assert!(self.len > 0 && self.names.values().all(|set| !set.is_empty()));
        let mut addresses: BTreeMap<IpAddr, BTreeSet<Name>> = BTreeMap::new();
        for record in self.records() {
            addresses
                .entry(record.addr)
                .or_default()
                .insert(record.name.clone());
        }
        assert_eq!(addresses, self.addresses);
    }
}

#[cfg(test)]
mod tests {
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
        assert!(table.has_under(&name("sub")));
        assert!(!table.has_under(&name("a.sub.weft.local")));
        assert!(!table.has_under(&name("su")) && !table.has_under(&name("b")));
        table.set(record("sub", "c", 2, 2)).unwrap();
        assert!(table.has_under(&name("sub")));
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
