//! Which machine this is: what tells a host from one that was made from a copy of its disk.
//!
//! Of three marks (the system's machine id, the hardware's UUID, the MACs of physical links) any one may
//! change in a host's life: a network card is replaced, a machine id is made anew. If two of three are
//! others than those the state was written on, the state was copied here, and using it would make two
//! routers with one key and one set of addresses.
//!
//! Invariant: a mark that cannot be read here, or could not be there, says nothing either way.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The marks of a machine, as far as they can be read. Kept in clear: only root reads the state, and
/// whoever wonders what has changed can see it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Machine {
    /// `/etc/machine-id`.
    pub id: Option<String>,
    /// The UUID the firmware tells.
    pub hardware: Option<String>,
    /// MACs of links that have a device behind them.
    pub macs: BTreeSet<String>,
}

impl Machine {
    /// The marks of the machine this runs on.
    pub(crate) fn read() -> Self {
        Self::read_below(Path::new("/"))
    }

    fn read_below(root: &Path) -> Self {
        let text = |path: &str| {
            let text = fs::read_to_string(root.join(path)).ok()?;
            let text = text.trim();
            // systemd's word for a machine that has no id yet.
            (!text.is_empty() && text != "uninitialized").then(|| text.to_owned())
        };
        Self {
            id: text("etc/machine-id"),
            hardware: text("sys/class/dmi/id/product_uuid"),
            macs: physical_macs(&root.join("sys/class/net")),
        }
    }

    /// Whether state written on `self` is a copy if it is found on `here`.
    pub(crate) fn is_another(&self, here: &Self) -> bool {
        let other = |was: &Option<String>, is: &Option<String>| {
            was.as_ref().zip(is.as_ref()).is_some_and(|(a, b)| a != b)
        };
        // One card of several may be replaced.
        let links = !self.macs.is_empty() && !here.macs.is_empty();
        let marks = [
            other(&self.id, &here.id),
            other(&self.hardware, &here.hardware),
            links && self.macs.is_disjoint(&here.macs),
        ];
        marks.into_iter().filter(|differs| *differs).count() >= 2
    }

    /// What is to be kept: the marks as they are, and the last ones known of those that cannot be read.
    pub(crate) fn or(self, before: Self) -> Self {
        let macs = match self.macs.is_empty() {
            true => before.macs,
            false => self.macs,
        };
        Self {
            id: self.id.or(before.id),
            hardware: self.hardware.or(before.hardware),
            macs,
        }
    }
}

fn physical_macs(links: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(links).into_iter().flatten().flatten();
    let physical = entries
        .map(|entry| entry.path())
        .filter(|link| link.join("device").exists());
    let mac = |link: PathBuf| fs::read_to_string(link.join("address")).ok();
    let macs = physical.filter_map(mac);
    macs.map(|mac| mac.trim().to_owned())
        .filter(|mac| !mac.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_of_three_marks_tell_a_copy_and_one_does_not() {
        let here = machine("a", "u", &["02:00:00:00:00:01", "02:00:00:00:00:02"]);
        let macs = here.macs.clone();
        let one = |id: &str, hardware: &str, macs: &BTreeSet<String>| Machine {
            macs: macs.clone(),
            ..machine(id, hardware, &[])
        };
        let others = BTreeSet::from(["02:00:00:00:00:09".to_owned()]);
        let replaced = BTreeSet::from([
            "02:00:00:00:00:02".to_owned(),
            "02:00:00:00:00:09".to_owned(),
        ]);
        for same in [
            one("a", "u", &macs),
            one("b", "u", &macs),
            one("a", "v", &macs),
            one("a", "u", &others),
            one("b", "u", &replaced),
        ] {
            assert!(!here.is_another(&same), "{same:?}");
        }
        for copy in [
            one("b", "v", &macs),
            one("b", "u", &others),
            one("a", "v", &others),
            one("b", "v", &others),
        ] {
            assert!(here.is_another(&copy), "{copy:?}");
        }
    }

    #[test]
    fn a_mark_that_cannot_be_read_says_nothing_and_is_not_forgotten() {
        let full = machine("a", "u", &["02:00:00:00:00:01"]);
        let nothing = Machine::default();
        let hidden = Machine {
            id: Some("b".to_owned()),
            ..Machine::default()
        };
        assert!(!full.is_another(&nothing));
        assert!(!nothing.is_another(&full));
        assert!(!full.is_another(&hidden));
        let kept = hidden.or(full.clone());
        assert_eq!(kept, machine("b", "u", &["02:00:00:00:00:01"]));
    }

    #[test]
    fn marks_are_read_from_the_system_and_links_without_a_device_are_none() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(Machine::read_below(root.path()), Machine::default());
        write("etc/machine-id", "uninitialized\n");
        write("sys/class/dmi/id/product_uuid", "u\n");
        write("sys/class/net/eth0/address", "02:00:00:00:00:01\n");
        write("sys/class/net/eth0/device/vendor", "");
        write("sys/class/net/weft/address", "02:00:00:00:00:02\n");
        let found = Machine::read_below(root.path());
        let expected = Machine {
            id: None,
            ..machine("", "u", &["02:00:00:00:00:01"])
        };
        assert_eq!(found, expected);
        write("etc/machine-id", "a\n");
        assert_eq!(Machine::read_below(root.path()).id.as_deref(), Some("a"));
    }

    fn machine(id: &str, hardware: &str, macs: &[&str]) -> Machine {
        Machine {
            id: Some(id.to_owned()),
            hardware: Some(hardware.to_owned()),
            macs: macs.iter().map(|mac| (*mac).to_owned()).collect(),
        }
    }
}
