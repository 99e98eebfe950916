//! The domain that is ours, and the names in it.
//!
//! Names compare without regard to case, as DNS wants it, by being lower case from the start. A value
//! of either type is fully qualified, ends in a dot and fits a DNS message; code that holds one checks
//! nothing again.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use hickory_proto::rr;
use thiserror::Error;

/// The domain all names of containers are in, such as `weft.local.`; lower case, with the last dot.
#[derive(Clone, PartialEq, Eq)]
pub struct Domain {
    text: Arc<str>,
    wire: rr::Name,
}

impl Domain {
    /// As text, with the last dot.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// As it stands in a DNS message.
    pub(crate) fn wire(&self) -> &rr::Name {
        &self.wire
    }

    /// Whether `name`, in whatever case, is the domain or inside it.
    pub(crate) fn holds(&self, name: &rr::Name) -> bool {
        self.wire.zone_of(name)
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is no domain for names.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} cannot be the domain of names ({why}); give one such as weft.local")]
pub struct ParseDomainError {
    text: String,
    why: Flaw,
}

impl FromStr for Domain {
    type Err = ParseDomainError;

    /// One or more labels with dots between; case and a dot at the end make no difference.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |why| ParseDomainError {
            text: shown(text),
            why,
        };
        let full = format!("{}.", undotted(text));
        check(&full).map_err(wrong)?;
        let labels = full.split_terminator('.').map(str::as_bytes);
        let wire = rr::Name::from_labels(labels).map_err(|_| wrong(Flaw::NameTooLong))?;
        Ok(Self {
            text: full.into(),
            wire,
        })
    }
}

/// A name inside the [`Domain`], such as `web.weft.local.`; lower case, with the last dot.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    text: Arc<str>,
    /// How many of the last bytes of `text` are the domain.
    domain: usize,
}

impl Name {
    /// Reads a bare label (`web`) or a name in the domain (`web.weft.local`, `a.b.weft.local.`); case
    /// and a dot at the end make no difference.
    pub fn new(text: &str, domain: &Domain) -> Result<Self, NameError> {
        let lower = undotted(text);
        let parent = undotted(domain.as_str());
        if lower == parent {
            return Err(NameError::IsDomain(domain.clone()));
        }
        let full = if !lower.contains('.') {
            format!("{lower}.{domain}")
        } else if lower
            .strip_suffix(&parent)
            .is_some_and(|head| head.ends_with('.'))
        {
            format!("{lower}.")
        } else {
            return Err(NameError::Outside {
                text: shown(text),
                domain: domain.clone(),
            });
        };
        check(&full)
            .and_then(|()| check_depth(&full, domain))
            .map_err(|why| NameError::Invalid {
                text: shown(text),
                why,
            })?;
        Ok(Self {
            text: full.into(),
            domain: domain.as_str().len(),
        })
    }

    /// As text, with the last dot.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// As it stands in a DNS message; there always is such a form, for the text was checked.
    pub(crate) fn wire(&self) -> Option<rr::Name> {
        rr::Name::from_labels(self.text.split_terminator('.').map(str::as_bytes)).ok()
    }

    /// The names this one is under, as far as they are in the domain: of `a.b.c.weft.local.` these are
    /// `b.c.weft.local.` and `c.weft.local.`.
    pub(crate) fn parents(&self) -> impl Iterator<Item = Self> {
        let rests = self
            .text
            .match_indices('.')
            .filter_map(|(dot, _)| self.text.get(dot + 1..));
        let inside = rests.take_while(|rest| rest.len() > self.domain);
        inside.map(|rest| Self {
            text: rest.into(),
            domain: self.domain,
        })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is no name of a container.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NameError {
    /// A dotted name that does not end in the domain.
    #[error(
        "{text:?} is not in the domain {domain}: give a bare name or one that ends in .{domain}"
    )]
    Outside {
        /// What was given.
        text: String,
        /// The domain in use.
        domain: Domain,
    },
    /// The domain itself, which stands for no container.
    #[error("{0} is the domain itself: put a name in front of it, such as web.{0}")]
    IsDomain(Domain),
    /// A label, or the whole, breaks the rules of DNS.
    #[error("{text:?} is not a name: {why}")]
    Invalid {
        /// What was given.
        text: String,
        /// The rule it breaks.
        why: Flaw,
    },
}

/// The rule that a name breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Flaw {
    /// No text, or two dots in a row.
    #[error("there is nothing before a dot")]
    EmptyLabel,
    /// A label above DNS's bound.
    #[error("one part of it is longer than {MAX_LABEL} characters")]
    LabelTooLong,
    /// The whole above DNS's bound.
    #[error("it is longer than {MAX_TEXT} characters with its domain")]
    NameTooLong,
    /// A character that resolvers refuse in the names of hosts.
    #[error("{0:?} is not allowed; letters, digits, - and _ are")]
    Character(char),
    /// Each part above the last costs every peer some memory.
    #[error("it has more than {MAX_DEPTH} parts before the domain")]
    Depth,
    /// C libraries refuse such names, lest one be taken for an option on a command line.
    #[error("a part of it starts with -")]
    Hyphen,
}

fn check(full: &str) -> Result<(), Flaw> {
    for label in full.split_terminator('.') {
        if label.is_empty() {
            return Err(Flaw::EmptyLabel);
        }
        let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if let Some(c) = label.chars().find(|c| !allowed(c)) {
            return Err(Flaw::Character(c));
        }
        if label.starts_with('-') {
            return Err(Flaw::Hyphen);
        }
        if label.len() > MAX_LABEL {
            return Err(Flaw::LabelTooLong);
        }
    }
    if full.len() > MAX_TEXT {
        Err(Flaw::NameTooLong)
    } else {
        Ok(())
    }
}

fn check_depth(full: &str, domain: &Domain) -> Result<(), Flaw> {
    let dots = |text: &str| text.matches('.').count();
    if dots(full) > dots(domain.as_str()) + MAX_DEPTH {
        Err(Flaw::Depth)
    } else {
        Ok(())
    }
}

fn undotted(text: &str) -> String {
    text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase()
}

/// What a message quotes of text that was refused; long text says no more than its beginning.
fn shown(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

/// Characters of one label (RFC 1035 §2.3.4).
const MAX_LABEL: usize = 63;
/// Characters of a name with its last dot: 255 bytes in a message, which has a length before each
/// label where the text has a dot behind it, and one more length, 0, at the end (RFC 1035 §2.3.4).
const MAX_TEXT: usize = 254;
/// Labels of a name before its domain; a service in a namespace of a cluster has three.
const MAX_DEPTH: usize = 8;

#[cfg(test)]
mod tests {
    use hickory_proto::serialize::binary::BinEncodable;

    use super::*;

    fn weft() -> Domain {
        "weft.local".parse().unwrap()
    }

    #[test]
    fn a_domain_is_lower_case_and_ends_in_a_dot_however_it_is_typed() {
        for text in ["weft.local", "weft.local.", "WEFT.Local"] {
            assert_eq!(text.parse::<Domain>().unwrap().to_string(), "weft.local.");
        }
        assert_eq!("weft".parse::<Domain>().unwrap().as_str(), "weft.");
    }

    #[test]
    fn what_is_no_domain_is_refused_with_the_reason() {
        let why = |text: &str| text.parse::<Domain>().unwrap_err().to_string();
        assert!(why("").contains("nothing before a dot"));
        assert!(why(".").contains("nothing before a dot"));
        assert!(why("a..b").contains("nothing before a dot"));
        assert!(why("weft local").contains("' ' is not allowed"));
        assert!(why(&"x".repeat(64)).contains("longer than 63"));
        assert!(why(&"abc.".repeat(64)).contains("longer than 254"));
    }

    #[test]
    fn bare_and_full_names_are_the_same_name() {
        for text in ["web", "WEB", "web.", "web.weft.local", "Web.Weft.Local."] {
            assert_eq!(
                Name::new(text, &weft()).unwrap().as_str(),
                "web.weft.local.",
                "{text}"
            );
        }
        let deep = Name::new("a.sub.weft.local", &weft()).unwrap();
        assert_eq!(deep.to_string(), "a.sub.weft.local.");
        assert_eq!(
            Name::new("my_db-", &weft()).unwrap().as_str(),
            "my_db-.weft.local."
        );
    }

    #[test]
    fn what_is_no_name_is_refused_with_what_to_do() {
        let why = |text: &str| Name::new(text, &weft()).unwrap_err().to_string();
        assert_eq!(
            why("web.example.com"),
            "\"web.example.com\" is not in the domain weft.local.: give a bare name or one that ends in .weft.local."
        );
        assert!(why("notweft.local").contains("not in the domain"));
        assert!(why("weft.local.").contains("web.weft.local."));
        assert!(why("-x").contains("starts with -"));
        assert!(why("a/b").contains("'/' is not allowed"));
        assert!(why("").contains("nothing before a dot"));
        assert!(why(".weft.local").contains("nothing before a dot"));
        assert!(why("a..weft.local").contains("nothing before a dot"));
        assert!(why(&format!("{}weft.local", "a.".repeat(9))).contains("more than 8 parts"));
        assert!(Name::new(&format!("{}weft.local", "a.".repeat(8)), &weft()).is_ok());
        assert!(why("büro").contains("'ü' is not allowed"));
    }

    #[test]
    fn the_longest_name_fits_a_dns_message_and_one_more_character_does_not() {
        let domain: Domain = format!("{0}.{0}.{0}", "d".repeat(63)).parse().unwrap();
        let longest = Name::new(&"n".repeat(61), &domain).unwrap();
        assert_eq!(longest.wire().unwrap().to_bytes().unwrap().len(), 255);
        assert!(Name::new(&"n".repeat(62), &domain).is_err());
    }

    #[test]
    fn parents_are_the_names_above_as_far_as_the_domain() {
        let parents = |text: &str| {
            let name = Name::new(text, &weft()).unwrap();
            name.parents().map(|n| n.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(
            parents("a.b.c.weft.local"),
            ["b.c.weft.local.", "c.weft.local."]
        );
        assert!(parents("web").is_empty());
    }
}
