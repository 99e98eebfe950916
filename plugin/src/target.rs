//! How people say which container they mean.
//!
//! `pid:N` is the network namespace of a process, `netns:NAME` one that `ip netns add` made,
//! `netns:PATH` one at a path; anything else is the name or id of a Docker container.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;
use weft_api::ContainerId;

/// A container, as typed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// Name, id, or first digits of the id of a Docker container.
    Docker(String),
    /// Whatever runs as this process.
    Pid(u32),
    /// The network namespace mounted at this absolute path.
    NetNs(PathBuf),
}

/// Text that names no container.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseTargetError {
    /// What follows `pid:` is no process number.
    #[error("{0:?} is not a process number, such as pid:4242")]
    Pid(String),
    /// What follows `netns:` is neither a name nor an absolute path.
    #[error("{0:?} is neither a name in {NETNS_DIR} nor an absolute path")]
    NetNs(String),
    /// Not a name that Docker allows.
    #[error("{0:?} is not a container: give a Docker name or id, pid:N, netns:NAME or netns:/PATH")]
    Name(String),
}

impl Target {
    /// How to name the container an id was made for; none for what is no container.
    pub fn of_id(id: &ContainerId) -> Option<Self> {
        let id = id.as_str();
        if let Some(process) = id.strip_prefix("pid-") {
            let (pid, _start) = process.split_once('-')?;
            return pid.parse().ok().map(Self::Pid);
        }
        id.parse().ok()
    }
}

impl FromStr for Target {
    type Err = ParseTargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(pid) = text.strip_prefix("pid:") {
            let number = pid.parse().ok().filter(|n| *n > 0);
            return number
                .map(Self::Pid)
                .ok_or_else(|| ParseTargetError::Pid(pid.to_owned()));
        }
        if let Some(ns) = text.strip_prefix("netns:") {
            return netns_path(ns)
                .map(Self::NetNs)
                .ok_or_else(|| ParseTargetError::NetNs(ns.to_owned()));
        }
        if !is_docker_name(text) {
            return Err(ParseTargetError::Name(text.to_owned()));
        }
        Ok(Self::Docker(text.to_owned()))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Docker(name) => f.write_str(name),
            Self::Pid(pid) => write!(f, "pid:{pid}"),
            Self::NetNs(path) => match path.strip_prefix(NETNS_DIR) {
                Ok(name) => write!(f, "netns:{}", name.display()),
                Err(_) => write!(f, "netns:{}", path.display()),
            },
        }
    }
}

fn netns_path(text: &str) -> Option<PathBuf> {
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return None;
    }
    if text.starts_with('/') {
        return Some(PathBuf::from(text));
    }
    let name = !text.is_empty() && text != "." && text != ".." && !text.contains('/');
    name.then(|| PathBuf::from(NETNS_DIR).join(text))
}

/// What Docker takes for a name; checked here because the name becomes part of a path of its API.
fn is_docker_name(text: &str) -> bool {
    let first = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    let rest = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    first && text.chars().all(rest)
}

/// Where `ip netns add` mounts the namespaces it makes.
pub const NETNS_DIR: &str = "/run/netns";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_four_forms_are_understood() {
        let target = |text: &str| text.parse::<Target>().unwrap();
        assert_eq!(target("web-1"), Target::Docker("web-1".to_owned()));
        assert_eq!(target("pid:17"), Target::Pid(17));
        assert_eq!(target("netns:c1"), Target::NetNs("/run/netns/c1".into()));
        let path = Target::NetNs("/proc/1/ns/net".into());
        assert_eq!(target("netns:/proc/1/ns/net"), path);
    }

    #[test]
    fn an_id_is_turned_into_what_names_it() {
        let named = |id: &str| Target::of_id(&ContainerId::new(id).unwrap());
        assert_eq!(named("pid-17-4242"), Some(Target::Pid(17)));
        let path = Target::NetNs("/run/netns/c1".into());
        assert_eq!(named("netns:/run/netns/c1"), Some(path));
        assert_eq!(
            named("0123456789ab"),
            Some(Target::Docker("0123456789ab".to_owned()))
        );
        assert_eq!(named(ContainerId::EXPOSE), None);
    }

    #[test]
    fn mistakes_are_explained() {
        for text in ["pid:", "pid:0", "pid:-1", "pid:x"] {
            let error = text.parse::<Target>().unwrap_err();
            assert!(matches!(error, ParseTargetError::Pid(_)), "{text}");
        }
        for text in ["netns:", "netns:..", "netns:a/b", "netns:a b"] {
            let error = text.parse::<Target>().unwrap_err();
            assert!(matches!(error, ParseTargetError::NetNs(_)), "{text}");
        }
        for text in ["", "a/../b", "web?x", "10.0.0.1/8", "ip:10.0.0.1/8"] {
            let error = text.parse::<Target>().unwrap_err();
            assert!(matches!(error, ParseTargetError::Name(_)), "{text}");
        }
    }

    proptest! {
        #[test]
        fn display_is_read_back(text in "(pid:[0-9]{1,6}|netns:[a-z/.]{0,9}|[a-z0-9_.-]{1,9})") {
            if let Ok(target) = text.parse::<Target>() {
                prop_assert_eq!(target.to_string().parse(), Ok(target));
            }
        }
    }
}
