//! `weft lab cut` and `weft lab mend`: nothing passes between two hosts on the virtual LAN, both
//! still reach the others.
//!
//! The LAN's firewall holds a set of pairs of ports whose frames it drops. The set is all the state
//! there is, so what is shown is what is in force.

use std::io::Write;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::layout::Place;
use super::running::Lab;

/// Cut two hosts off from each other on the virtual LAN, or mend that
#[derive(Debug, clap::Args)]
pub(crate) struct WireArgs {
    #[command(flatten)]
    pub(crate) lab: super::NameArgs,
    /// One host
    one: Place,
    /// The other host
    other: Place,
}

/// Frames are dropped where the bridge passes them on, whatever they carry.
const TABLE: &str = "add table bridge lab
add set bridge lab cuts { type ifname . ifname; }
add chain bridge lab forward { type filter hook forward priority 0; }
flush chain bridge lab forward
add rule bridge lab forward iifname . oifname @cuts drop
";

/// Cuts the wire between two hosts. A wire that is cut already stays so.
pub(crate) fn cut(args: &WireArgs) -> Result<()> {
    let lab = Lab::find(&args.lab.name)?;
    let pair = pair(&lab, args)?;
    nft(
        &lab,
        &["nft", "-f", "-"],
        &format!("{TABLE}add element bridge lab cuts {pair}\n"),
    )
    .map(drop)
}

/// Mends the wire between two hosts.
pub(crate) fn mend(args: &WireArgs) -> Result<()> {
    let lab = Lab::find(&args.lab.name)?;
    let pair = pair(&lab, args)?;
    if !cuts(&lab)?.contains(&ordered(args.one, args.other)) {
        bail!(
            "the wire between {} and {} is not cut",
            args.one,
            args.other
        );
    }
    nft(
        &lab,
        &["nft", "-f", "-"],
        &format!("delete element bridge lab cuts {pair}\n"),
    )
    .map(drop)
}

/// The pairs of hosts whose wire is cut, in order.
pub(crate) fn cuts(lab: &Lab) -> Result<Vec<(Place, Place)>> {
    let tables = nft(lab, &["nft", "list", "tables", "bridge"], "")?;
    if !tables.lines().any(|line| line.trim() == "table bridge lab") {
        return Ok(Vec::new());
    }
    read_cuts(&nft(
        lab,
        &["nft", "-j", "list", "set", "bridge", "lab", "cuts"],
        "",
    )?)
}

fn pair(lab: &Lab, args: &WireArgs) -> Result<String> {
    for place in [args.one, args.other] {
        if !matches!(place, Place::Host(_)) || !lab.layout().has(place) {
            bail!(
                "{place} has no wire on the virtual LAN: give two of host1 to host{}",
                lab.layout().hosts
            );
        }
    }
    if args.one == args.other {
        bail!("a wire has two ends: give two different hosts");
    }
    let (one, other) = (args.one, args.other);
    Ok(format!(
        "{{ \"{one}\" . \"{other}\", \"{other}\" . \"{one}\" }}"
    ))
}

fn ordered(one: Place, other: Place) -> (Place, Place) {
    (one.min(other), one.max(other))
}

fn nft(lab: &Lab, words: &[&str], input: &str) -> Result<String> {
    let mut command = lab.command(Place::Lan, words);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .context("cannot start the weft program again")?;
    if let Some(mut to) = child.stdin.take() {
        // If it ended early it does not read, and what it said says why.
        let _ = to.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().context("cannot wait for nft")?;
    match output.status.code() {
        Some(0) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Some(127) => bail!(
            "wires are cut by the nft program, which is not installed: `apt-get install nftables`"
        ),
        Some(_) | None => bail!(
            "nft failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ),
    }
}

#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    set: Option<Set>,
}

#[derive(Deserialize)]
struct Set {
    #[serde(default)]
    elem: Vec<Element>,
}

#[derive(Deserialize)]
struct Element {
    concat: (String, String),
}

fn read_cuts(json: &str) -> Result<Vec<(Place, Place)>> {
    let listing: Listing = serde_json::from_str(json).context("cannot read what nft lists")?;
    let elements = listing
        .nftables
        .into_iter()
        .filter_map(|item| item.set)
        .flat_map(|set| set.elem);
    let pairs: Result<Vec<_>, _> = elements
        .map(
            |Element {
                 concat: (one, other),
             }| Ok(ordered(one.parse()?, other.parse()?)),
        )
        .collect::<Result<_, super::layout::ParsePlaceError>>();
    let mut pairs = pairs?;
    pairs.sort();
    pairs.dedup();
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_a_wire_are_one_cut() {
        let json = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"set": {"family": "bridge", "name": "cuts",
            "table": "lab", "type": ["ifname", "ifname"], "handle": 1,
            "elem": [{"concat": ["host3", "host1"]}, {"concat": ["host1", "host3"]}, {"concat": ["host1", "host2"]}]}}]}"#;
        let [a, b, c] = [1, 2, 3].map(Place::Host);
        assert_eq!(read_cuts(json).unwrap(), [(a, b), (a, c)]);
    }

    #[test]
    fn a_set_without_elements_is_no_cut() {
        assert_eq!(
            read_cuts(r#"{"nftables": [{"set": {"name": "cuts"}}]}"#).unwrap(),
            []
        );
        assert!(read_cuts("{").is_err());
    }
}
