//! Holds what the compiler does not: which crate may use which, and the habits of the source.
//!
//! The floors are the design's: a crate uses only crates of lower floors, and the pure crates use
//! nothing that could bring in a clock, a socket or a thread. An edge that is not in [`FLOORS`] is a
//! decision to be taken (and written down in `docs/decisions/`), not an accident.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot read the project fails"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Crate, floor, and every crate it may use outside tests.
const FLOORS: &[(&str, u8, &[&str])] = &[
    ("weft-wire", 0, &["etherparse", "thiserror"]),
    (
        "weft-router",
        1,
        &[
            "weft-wire",
            "argon2",
            "aws-lc-rs",
            "foldhash",
            "rand_chacha",
            "rand_core",
            "ring",
            "snow",
            "thiserror",
            "zeroize",
        ],
    ),
    (
        "weft-ipam",
        1,
        &["weft-wire", "rand_chacha", "rand_core", "thiserror"],
    ),
    (
        "weft-dns",
        1,
        &["weft-wire", "hickory-proto", "rand_core", "thiserror"],
    ),
    (
        "weft-api",
        1,
        &[
            "bytes",
            "http-body-util",
            "hyper",
            "hyper-util",
            "serde",
            "serde_json",
            "thiserror",
            "tokio",
            "weft-wire",
        ],
    ),
    ("weft-gossip", 1, &["weft-wire", "thiserror", "tracing"]),
    (
        "weft-net",
        2,
        &[
            "weft-wire",
            "futures-util",
            "libc",
            "netlink-packet-core",
            "netlink-packet-route",
            "nftables",
            "nix",
            "rtnetlink",
            "serde_json",
            "socket2",
            "thiserror",
            "tokio",
            "tracing",
            "tun-rs",
        ],
    ),
    (
        "weft-plugin",
        3,
        &[
            "weft-wire",
            "weft-api",
            "weft-net",
            "anyhow",
            "bollard",
            "bytes",
            "futures-util",
            "getrandom",
            "http-body-util",
            "hyper",
            "hyper-util",
            "nix",
            "serde",
            "serde_json",
            "thiserror",
            "tokio",
            "tracing",
        ],
    ),
    (
        "weft-cli",
        4,
        &[
            "weft-wire",
            "weft-api",
            "weft-net",
            "weft-plugin",
            "anyhow",
            "clap",
            "getrandom",
            "serde",
            "serde_json",
            "thiserror",
            "tokio",
            "zeroize",
        ],
    ),
];

/// The client of `api` is the one part of the pure floors that does I/O; it stands behind a feature.
const PURE: &[&str] = &["weft-wire", "weft-router", "weft-ipam", "weft-dns"];
/// Crates no pure crate may use, whatever the table says.
const IMPURE: &[&str] = &["tokio", "socket2", "nix", "libc", "getrandom", "rand"];
/// Words that mark unfinished work.
const UNFINISHED: &[&str] = &[
    "TO\u{44}O",
    "FI\u{58}ME",
    "XX\u{58}",
    "unimpl\u{65}mented!",
    "#[ign\u{6f}re",
];
/// What claims nothing is no check that is left out. A task of its own runs it.
const MEASUREMENT: &str = "#[ign\u{6f}re = \"a measurement\"]";
/// Folders that hold tests alone.
const TEST_FOLDERS: &[&str] = &["tests", "simulation"];
/// Longest source file, its tests left out.
const MAX_LINES: usize = 600;

#[test]
fn crates_use_only_what_their_floor_allows() {
    let edges = normal_dependencies();
    let mut wrong = Vec::new();
    for (name, floor, allowed) in FLOORS {
        let used = edges
            .get(*name)
            .unwrap_or_else(|| panic!("{name} is not in the workspace"));
        for dependency in used {
            if !allowed.contains(&dependency.as_str()) {
                wrong.push(format!(
                    "{name} uses {dependency}, which its floor does not list"
                ));
            }
            if PURE.contains(name) && IMPURE.contains(&dependency.as_str()) {
                wrong.push(format!("{name} is pure and uses {dependency}"));
            }
            let below = FLOORS
                .iter()
                .find(|(n, _, _)| n == dependency)
                .is_none_or(|(_, f, _)| f < floor);
            if !below {
                wrong.push(format!(
                    "{name} (floor {floor}) uses {dependency}, which is not below it"
                ));
            }
        }
    }
    for name in edges.keys().filter(|n| n.starts_with("weft-")) {
        if !FLOORS.iter().any(|(n, _, _)| n == name) {
            wrong.push(format!("{name} stands on no floor"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_source_file_says_what_it_is() {
    let silent: Vec<_> = sources()
        .into_iter()
        .filter(|path| {
            let text = fs::read_to_string(path).unwrap();
            !text
                .lines()
                .find(|line| !line.starts_with("#!"))
                .is_some_and(|line| line.starts_with("//!"))
        })
        .collect();
    assert!(silent.is_empty(), "no //! line at the top of {silent:?}");
}

#[test]
fn no_crate_but_net_may_be_unsafe() {
    for (name, _, _) in FLOORS {
        let folder = name.trim_start_matches("weft-");
        let text = fs::read_to_string(root().join(folder).join("src/lib.rs")).unwrap();
        assert_eq!(
            text.contains("#![forbid(unsafe_code)]"),
            folder != "net",
            "{name}"
        );
    }
    let text = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    assert!(text.contains("#![forbid(unsafe_code)]"));
}

#[test]
fn nothing_is_left_unfinished() {
    let mut found = Vec::new();
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            let is_measured = line.trim() == MEASUREMENT;
            if !is_measured && UNFINISHED.iter().any(|word| line.contains(word)) {
                found.push(format!("{}:{}: {line}", path.display(), number + 1));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn files_stay_small_enough_to_be_read() {
    let long: Vec<_> = sources()
        .into_iter()
        .filter(|path| {
            !path
                .components()
                .any(|c| TEST_FOLDERS.iter().any(|folder| c.as_os_str() == *folder))
        })
        .filter_map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let code = text
                .split("\n#[cfg(test)]\nmod ")
                .next()
                .unwrap_or_default();
            let lines = code.lines().count();
            (lines > MAX_LINES).then(|| format!("{} has {lines} lines", path.display()))
        })
        .collect();
    assert!(long.is_empty(), "split these: {long:?}");
}

#[test]
fn every_test_that_the_page_on_faults_names_is_there() {
    let page = fs::read_to_string(root().join("docs/faults.md")).unwrap();
    let quoted = page.split('`').skip(1).step_by(2);
    let named: Vec<_> = quoted
        .filter(|word| word.contains('_') && !word.contains(' '))
        .collect();
    assert!(named.len() > 30, "the page is not what this test reads");
    let texts: Vec<_> = sources()
        .into_iter()
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let is_there = |name: &&str| {
        let line = format!("fn {name}(");
        texts.iter().any(|text| text.contains(&line))
    };
    let missing: Vec<_> = named.into_iter().filter(|name| !is_there(name)).collect();
    assert!(missing.is_empty(), "no such tests: {missing:?}");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if name.ends_with(".rs") {
                found.push(path);
            }
        }
    }
    assert!(
        found.len() > 20,
        "the sources are not where this test looks"
    );
    found
}

/// Every workspace crate with the crates it uses outside tests and build scripts.
fn normal_dependencies() -> BTreeMap<String, Vec<String>> {
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|package| {
            let used = package["dependencies"].as_array().unwrap().iter();
            let used = used
                .filter(|d| d["kind"].is_null())
                .map(|d| d["name"].as_str().unwrap().to_owned());
            (package["name"].as_str().unwrap().to_owned(), used.collect())
        })
        .collect()
}
