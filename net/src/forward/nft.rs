//! The filters that are written in nftables' own language: by people, by firewalld, by Docker if it is
//! told to.
//!
//! A packet is dropped if any chain at the forward hook drops it, whatever the others say; so the rule
//! goes to the top of each that drops what it does not know.

use serde_json::Value;

use super::xtables::{self, Family, Filter, Kind};
use super::{COMMENT, ForwardError, Forwarding, first_line, refused, run};

/// A chain that packets which are forwarded run through.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chain {
    family: String,
    table: String,
    name: String,
    drops: bool,
}

/// Whether there is a tool to look with.
pub(super) fn is_there() -> bool {
    matches!(run("nft", &["--version"]), Ok(Some(_)))
}

/// Puts the rule in wherever it is missing and something could be dropped. Chains of iptables are left
/// to it if it is among these filters.
pub(super) fn accept(bridge: &str, others: &[Filter]) -> Result<Forwarding, ForwardError> {
    let mut found = Forwarding::NotFiltered;
    for chain in chains() {
        if others.iter().any(|filter| chain.is_of(filter)) {
            continue;
        }
        let rules = chain.rules();
        if !chain.drops && !rules.last().is_some_and(drops_all) {
            continue;
        }
        if rules.iter().any(|rule| is_ours(rule, bridge)) {
            found = found.max(Forwarding::Accepted);
            continue;
        }
        chain.insert(bridge)?;
        found = Forwarding::NowAccepted;
    }
    Ok(found)
}

/// Takes every such rule out.
pub(super) fn remove(bridge: &str) {
    for chain in chains() {
        for rule in chain.rules().iter().filter(|rule| is_ours(rule, bridge)) {
            let handle = rule["handle"].to_string();
            // One that went meanwhile need not be deleted.
            let _ = nft(&chain.words(&["delete", "rule"], &["handle", &handle]));
        }
    }
}

/// Every chain at the forward hook that sees IP packets.
fn chains() -> Vec<Chain> {
    let listed = list(&["list", "chains"]);
    let chains = listed.iter().filter_map(|object| object.get("chain"));
    chains.filter_map(chain).collect()
}

fn chain(listed: &Value) -> Option<Chain> {
    let text = |key: &str| listed[key].as_str().map(str::to_owned);
    let family = text("family").filter(|f| ["ip", "ip6", "inet"].contains(&f.as_str()))?;
    text("hook").filter(|hook| hook == "forward")?;
    Some(Chain {
        family,
        table: text("table")?,
        name: text("name")?,
        drops: text("policy").is_some_and(|policy| policy == "drop"),
    })
}

impl Chain {
    /// Whether it is one that iptables made.
    fn is_of(&self, filter: &Filter) -> bool {
        let family = match filter.family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        let (table, name) = (self.table.as_str(), self.name.as_str());
        filter.kind == Kind::Nft
            && self.family == family
            && (table, name) == ("filter", xtables::FORWARD)
    }

    fn rules(&self) -> Vec<Value> {
        let listed = list(&self.words(&["list", "chain"], &[]));
        let rule = |mut object: Value| Some(object.get_mut("rule")?.take());
        listed.into_iter().filter_map(rule).collect()
    }

    fn insert(&self, bridge: &str) -> Result<(), ForwardError> {
        let quoted = format!("\"{bridge}\"");
        let rule = [
            "iifname", &quoted, "oifname", &quoted, "accept", "comment", COMMENT,
        ];
        let inserted = nft(&self.words(&["insert", "rule"], &rule));
        match (inserted, self.table == "firewalld") {
            (Err(ForwardError::Refused { said, .. }), true) => {
                let bridge = bridge.to_owned();
                Err(ForwardError::Firewalld { bridge, said })
            }
            (inserted, _) => inserted,
        }
    }

    fn words<'a>(&'a self, before: &[&'a str], after: &[&'a str]) -> Vec<&'a str> {
        [before, &[&self.family, &self.table, &self.name], after].concat()
    }
}

/// Whether a rule drops or rejects whatever comes to it.
fn drops_all(rule: &Value) -> bool {
    let parts = rule["expr"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let is = |part: &Value, kind: &str| part.get(kind).is_some();
    parts
        .iter()
        .any(|part| is(part, "drop") || is(part, "reject"))
        && !parts.iter().any(|part| is(part, "match"))
}

fn is_ours(rule: &Value, bridge: &str) -> bool {
    let parts = rule["expr"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let matched = parts.iter().map(|part| &part["match"]["right"]);
    rule["comment"] == COMMENT && matched.filter(|right| *right == bridge).count() == 2
}

/// What is listed in JSON; nothing if it cannot be had, as when a chain went meanwhile.
fn list(arguments: &[&str]) -> Vec<Value> {
    let listed = run("nft", &[&["-j", "-a"], arguments].concat());
    let Ok(Some(output)) = listed else {
        return Vec::new();
    };
    let parsed: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    parsed["nftables"].as_array().cloned().unwrap_or_default()
}

fn nft(arguments: &[&str]) -> Result<(), ForwardError> {
    match run("nft", arguments)? {
        Some(output) if output.status.success() => Ok(()),
        Some(output) => Err(refused("nft", &first_line(&output.stderr))),
        None => Err(refused("nft", &"it is gone")),
    }
}
