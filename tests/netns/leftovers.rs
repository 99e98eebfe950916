//! A lab leaves nothing behind, however it ends, and nothing that would block the next one.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::support::{Lab, SOON, ensure, eventually, finish, possible, run, signal, weft};

/// An environment variable that all processes of one lab inherit, and no others.
const TRACE: &str = "NETNS_TRACE";

#[test]
fn plain_lab_leaves_nothing_behind() {
    if !possible() {
        return;
    }
    let lab = Lab::named("nothing");
    let before = traces();
    let mut command = weft(&["lab", "--name", lab.name()]);
    command.env(TRACE, lab.name());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    // Three hosts, three routers, three containers, the LAN: so many are seen while it is up.
    eventually("the lab's processes are found", SOON, || {
        let found = processes_of(lab.name());
        ensure(found.len() >= 10, format!("{found:?}"))
    });
    finish(child, "weft lab").success();
    nothing_is_left(lab.name(), &before);
}

#[test]
fn a_lab_that_is_killed_leaves_nothing_that_blocks_the_next() {
    if !possible() {
        return;
    }
    let lab = Lab::named("killed");
    let before = traces();
    let words = ["--hosts", "2"];
    run(lab.lab("up", &words).env(TRACE, lab.name())).success();
    assert!(processes_of(lab.name()).len() >= 7);

    // While it is up, another `up` leaves it alone.
    let said = run(&mut lab.lab("up", &words)).failure(3);
    assert!(said.contains("already up"), "{said}");
    lab.ping("c1", "c2").unwrap();

    let status = run(&mut lab.lab("status", &["--json"])).success();
    let status: Value = serde_json::from_str(&status).unwrap();
    let first = u32::try_from(status["pid"].as_u64().unwrap()).unwrap();
    signal(first, Signal::SIGKILL);
    eventually("all processes of the lab end", SOON, || {
        let found = processes_of(lab.name());
        ensure(found.is_empty(), format!("{found:?}"))
    });
    // Process 1 is dead, but counts as there until whoever inherited it takes notice.
    eventually("the lab is known not to be up", SOON, || {
        let said = lab.exec("host1", &["true"]).failure(125);
        ensure(said.contains("not up"), said)
    });

    run(lab.lab("up", &words).env(TRACE, lab.name())).success();
    lab.ping("c1", "c2").unwrap();
    run(&mut lab.lab("down", &[])).success();
    nothing_is_left(lab.name(), &before);
    // Taking down what is not up is no fault.
    run(&mut lab.lab("down", &[])).success();
}

#[test]
fn a_lab_whose_command_is_killed_on_the_way_up_comes_down() {
    if !possible() {
        return;
    }
    let lab = Lab::named("midway");
    let before = traces();
    let mut command = weft(&["lab", "--name", lab.name()]);
    command
        .env(TRACE, lab.name())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    eventually("the lab begins to be", SOON, || {
        let found = processes_of(lab.name());
        ensure(found.len() >= 4, format!("{found:?}"))
    });
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("all processes of the lab end", SOON, || {
        let found = processes_of(lab.name());
        ensure(found.is_empty(), format!("{found:?}"))
    });
    lab.bring_up(1, 2, &[]).success();
    lab.ping("c1", "c2").unwrap();
    run(&mut lab.lab("down", &[])).success();
    nothing_is_left(lab.name(), &before);
}

/// What a lab could leave on the machine, besides processes.
fn traces() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for folder in [
        "/sys/class/net",
        "/run",
        "/run/netns",
        "/run/weft",
        "/var/lib",
        "/var/lib/weft",
        "/var/log",
        "/etc",
    ] {
        let Ok(entries) = fs::read_dir(folder) else {
            continue;
        };
        // The folder labs of other tests come and go in.
        let names = entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path != Path::new("/run/weft-lab"));
        found.extend(names.map(|path| path.display().to_string()));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(mounts.lines().map(|line| format!("mount {line}")));
    found
}

fn nothing_is_left(name: &str, before: &BTreeSet<String>) {
    let state = Path::new("/run/weft-lab").join(name);
    assert!(!state.exists(), "{} is left", state.display());
    assert_eq!(processes_of(name), [] as [String; 0]);
    let after = traces();
    let left: Vec<_> = after.difference(before).collect();
    let gone: Vec<_> = before.difference(&after).collect();
    assert!(
        left.is_empty() && gone.is_empty(),
        "left: {left:?}, gone: {gone:?}"
    );
}

/// Command lines of all processes that descend from a command with this trace.
fn processes_of(name: &str) -> Vec<String> {
    let trace = format!("{TRACE}={name}").into_bytes();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        let mut environment = Vec::new();
        // Most entries are no processes, and processes come and go.
        let read = fs::File::open(path.join("environ"))
            .and_then(|mut file| file.read_to_end(&mut environment));
        let ours = environment
            .split(|byte| *byte == 0)
            .any(|part| part == trace);
        if read.is_ok() && ours {
            let line = fs::read(path.join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            found.push(format!("{} {line}", path.display()));
        }
    }
    found
}

#[test]
fn a_lab_that_cannot_be_brought_up_says_why_and_leaves_nothing() {
    if !possible() {
        return;
    }
    let lab = Lab::named("cannot");
    let before = traces();
    let mut up = lab.lab("up", &["--", "--ipalloc-range", "no-range"]);
    let said = run(up.env(TRACE, lab.name())).failure(1);
    assert!(said.contains("no-range"), "{said}");
    nothing_is_left(lab.name(), &before);
}
