//! The filters that iptables keeps: legacy and nft, each for IPv4 and IPv6.
//!
//! Which of them a host uses is a matter of what its other programs were started with, and two may be
//! in use at once; each has its own tool.

use std::fs;
use std::process::Output;

use super::{COMMENT, ForwardError, Forwarding, first_line, refused, run};

/// An IP version: its rules are another filter's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// Both.
pub(super) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    /// Whether the kernel shows bridged frames to this family's filters, in this network namespace.
    pub(super) fn is_filtered(self) -> bool {
        let setting = match self {
            Self::V4 => "/proc/sys/net/bridge/bridge-nf-call-iptables",
            Self::V6 => "/proc/sys/net/bridge/bridge-nf-call-ip6tables",
        };
        fs::read_to_string(setting).is_ok_and(|text| text.trim() == "1")
    }

    /// Whether the legacy filter is in use in this network namespace. To ask its tool would make it so.
    pub(super) fn has_legacy_filter(self) -> bool {
        let names = match self {
            Self::V4 => "/proc/thread-self/net/ip_tables_names",
            Self::V6 => "/proc/thread-self/net/ip6_tables_names",
        };
        let names = fs::read_to_string(names);
        names.is_ok_and(|names| names.lines().any(|name| name == "filter"))
    }

    const fn tool(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }
}

/// Where the kernel has the rules of an iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Legacy,
    Nft,
}

/// One filter and the tool for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) family: Family,
    pub(super) kind: Kind,
    tool: String,
}

/// Every filter there is a tool for.
pub(super) fn all() -> Vec<Filter> {
    let mut filters = Vec::new();
    for family in FAMILIES {
        for (kind, suffix) in [(Kind::Legacy, "legacy"), (Kind::Nft, "nft")] {
            let name = format!("{}-{suffix}", family.tool());
            let tool = [name.as_str(), family.tool()];
            let tool = tool.into_iter().find(|tool| kind_of(tool) == Some(kind));
            let tool = tool.map(str::to_owned);
            filters.extend(tool.map(|tool| Filter { family, kind, tool }));
        }
    }
    filters
}

impl Filter {
    /// Whether frames may meet rules here.
    pub(super) fn is_in_use(&self) -> bool {
        self.family.is_filtered()
            && match self.kind {
                Kind::Legacy => self.family.has_legacy_filter(),
                Kind::Nft => true,
            }
    }

    /// Puts the rule in if it is missing where something could be dropped.
    pub(super) fn accept(&self, bridge: &str) -> Result<Forwarding, ForwardError> {
        let forward = self.list(FORWARD)?;
        if forward.iter().all(|rule| rule == "-P FORWARD ACCEPT") {
            return Ok(Forwarding::NotFiltered);
        }
        let (chain, rules) = if forward
            .iter()
            .any(|rule| rule == "-A FORWARD -j DOCKER-USER")
        {
            (DOCKER_USER, self.list(DOCKER_USER)?)
        } else {
            (FORWARD, forward)
        };
        let wanted = format!("-A {chain} {}", rule(bridge).join(" "));
        if rules.contains(&wanted) {
            return Ok(Forwarding::Accepted);
        }
        let inserted = self.run(&["-I", chain], &rule(bridge))?;
        if inserted.status.success() {
            return Ok(Forwarding::NowAccepted);
        }
        Err(refused(&self.tool, &first_line(&inserted.stderr)))
    }

    /// Takes every such rule out.
    pub(super) fn remove(&self, bridge: &str) {
        if self.kind == Kind::Legacy && !self.family.has_legacy_filter() {
            return;
        }
        for chain in [FORWARD, DOCKER_USER] {
            let delete = || self.run(&["-D", chain], &rule(bridge));
            while delete().is_ok_and(|deleted| deleted.status.success()) {}
        }
    }

    /// The rules of a chain as the tool would be told them, its policy first; none if there is no such
    /// chain.
    fn list(&self, chain: &str) -> Result<Vec<String>, ForwardError> {
        let listed = self.run(&["-S", chain], &[])?;
        let text = String::from_utf8_lossy(&listed.stdout);
        Ok(text.lines().map(str::to_owned).collect())
    }

    fn run(&self, action: &[&str], rule: &[&str]) -> Result<Output, ForwardError> {
        // Another program may hold the lock of the tables; it is waited for, but not for ever.
        let arguments = [&["-w", "5"], action, rule].concat();
        let ran = run(&self.tool, &arguments)?;
        ran.ok_or_else(|| refused(&self.tool, &"it is gone"))
    }
}

/// What an iptables of this name works on; none if there is none.
fn kind_of(tool: &str) -> Option<Kind> {
    let version = run(tool, &["-V"]).ok().flatten()?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    // Before 1.8 there was nothing to tell apart.
    let nft = version.contains("nf_tables");
    version
        .starts_with("ip")
        .then_some(if nft { Kind::Nft } else { Kind::Legacy })
}

fn rule(bridge: &str) -> [&str; 10] {
    let comment = ["-m", "comment", "--comment", COMMENT];
    let [m, module, c, text] = comment;
    [
        "-i", bridge, "-o", bridge, m, module, c, text, "-j", "ACCEPT",
    ]
}

/// What forwarded packets meet.
pub(super) const FORWARD: &str = "FORWARD";
/// The chain Docker makes for other people's rules, leads to first, and never flushes.
const DOCKER_USER: &str = "DOCKER-USER";
