//! Putting containers on the network and taking them off, addresses, and names: as the README says.

use std::process::Stdio;

use nix::sys::signal::Signal;

use super::support::{Lab, SOON, ensure, eventually, finish, possible, signal};

#[test]
fn containers_are_attached_listed_and_detached() {
    if !possible() {
        return;
    }
    let lab = Lab::up("attach", 2, 2, &[]);
    // c1 and c2 are on host1, c3 and c4 on host2; `lab up` has attached them.
    let listed = lab.ok("host1", &["weft", "ps", "netns:c1"]);
    let line = listed.trim();
    let [target, mac, address] = line.split(' ').collect::<Vec<_>>()[..] else {
        panic!("not a line of target, MAC, address: {listed}");
    };
    assert!(target.ends_with("c1"), "{listed}");
    let own_mac = lab.ok("c1", &["cat", "/sys/class/net/ethwe/address"]);
    assert_eq!(own_mac.trim(), mac);
    assert_eq!(mtu(&lab, "c1"), "1376");
    let all = lab.ok("host1", &["weft", "ps"]);
    assert_eq!(all.lines().count(), 3, "the host, c1 and c2: {all}");

    // A second address, then the container is on both.
    let printed = lab.ok("host1", &["weft", "attach", "ip:10.47.1.1/12", "netns:c1"]);
    assert!(printed.contains("10.47.1.1"), "{printed}");
    lab.pings("c3", "10.47.1.1", SOON);
    let (first, _) = address.split_once('/').unwrap();
    lab.ping("c3", first).unwrap();
    // Attaching what is attached changes nothing.
    let before = lab.ok("host1", &["weft", "ps"]);
    lab.ok("host1", &["weft", "attach", "ip:10.47.1.1/12", "netns:c1"]);
    assert_eq!(lab.ok("host1", &["weft", "ps"]), before);

    let detach = ["weft", "detach", "ip:10.47.1.1/12", "netns:c1"];
    assert_eq!(lab.ok("host1", &detach), "10.47.1.1\n");
    lab.ping("c3", first).unwrap();
    assert!(lab.ping("c3", "10.47.1.1").is_err(), "still answers");

    lab.ok("host1", &["weft", "detach", "netns:c1"]);
    let links = lab.ok("c1", &["cat", "/proc/net/dev"]);
    assert!(!links.contains("ethwe"), "{links}");
    let listed = lab.ok("host1", &["weft", "ps"]);
    assert!(!listed.contains("netns:/run/netns/c1"), "{listed}");
    for host in ["host1", "host2"] {
        eventually(&format!("{host} forgets the name"), SOON, || {
            let outcome = lab.exec(host, &["weft", "dns-lookup", "c1"]);
            ensure(outcome.code == Some(4), format!("{outcome:?}"))
        });
    }
    // The address is free: somebody else may have it at once.
    let again = format!("ip:{address}");
    let attach = ["weft", "attach", "--name", "again", &again, "netns:c1"];
    assert_eq!(lab.ok("host1", &attach).trim(), first);
    lab.pings("c4", "again", SOON);
}

fn mtu(lab: &Lab, container: &str) -> String {
    let mtu = lab.ok(container, &["cat", "/sys/class/net/ethwe/mtu"]);
    mtu.trim().to_owned()
}

#[test]
fn what_cannot_be_attached_is_refused_in_words_that_help() {
    if !possible() {
        return;
    }
    let lab = Lab::up("errors", 2, 1, &[]);
    let held = lab.ok("host1", &["weft", "dns-lookup", "c1"]);
    let taken = format!("ip:{}/12", held.trim());
    let holder = lab.report("host1").router.name.to_string();
    let before = lab.ok("host2", &["weft", "ps"]);
    let cases: [(&[&str], &str); 7] = [
        (&["attach", "netns:nobody"], "netns:nobody"),
        (&["attach", "netns:/run/nobody"], "/run/nobody"),
        (&["attach", "pid:999999"], "999999"),
        (&["attach", "nobody"], "Docker"),
        // The peer whose container has it is named.
        (&["attach", &taken, "netns:c2"], &holder),
        (&["attach", "net:192.0.2.0/24", "netns:c2"], "192.0.2.0/24"),
        (&["detach", "net:192.0.2.0/24", "netns:c2"], "it holds"),
    ];
    for (words, told) in cases {
        let words = [&["weft"], words].concat();
        let outcome = lab.exec("host2", &words);
        assert_eq!(outcome.code, Some(1), "{words:?}: {outcome:?}");
        let said = outcome.said;
        assert!(said.contains(told), "{words:?} says {said}");
        assert_eq!(said.trim().lines().count(), 1, "{words:?} says {said}");
    }
    // What is not even understood is another matter.
    let said = lab.exec(
        "host2",
        &["weft", "attach", "ip:10.32.0.300/12", "netns:c2"],
    );
    assert!(said.code.is_some_and(|code| code != 0), "{said:?}");
    assert!(said.said.contains("10.32.0.300"), "{said:?}");
    assert_eq!(lab.ok("host2", &["weft", "ps"]), before, "nothing changed");
    lab.ping("c2", "c1").unwrap();
}

#[test]
fn the_host_joins_the_network_and_leaves_it() {
    if !possible() {
        return;
    }
    let lab = Lab::up("expose", 2, 1, &[]);
    let address = lab.ok("host1", &["weft", "expose", "--name", "gate"]);
    let address = address.trim();
    lab.pings("c2", "gate", SOON);
    lab.pings("c1", "gate", SOON);
    let c2 = lab.ok("host1", &["weft", "dns-lookup", "c2"]);
    lab.ping("host1", c2.trim()).unwrap();
    let listed = lab.ok("host1", &["weft", "ps"]);
    assert!(listed.contains(address), "{listed}");
    assert_eq!(lab.ok("host1", &["weft", "hide"]).trim(), address);
    assert!(lab.ping("c2", address).is_err(), "still answers");
    let listed = lab.ok("host1", &["weft", "ps"]);
    assert!(!listed.contains(address), "{listed}");
}

#[test]
fn names_are_added_looked_up_and_removed() {
    if !possible() {
        return;
    }
    let lab = Lab::up("names", 2, 1, &[]);
    let c2 = lab.ok("host2", &["weft", "dns-lookup", "c2"]);
    let looked_up = |name: &str, expected: &[&str]| {
        eventually(&format!("{name} is {expected:?} on host1"), SOON, || {
            let outcome = lab.exec("host1", &["weft", "dns-lookup", name]);
            let mut found: Vec<_> = outcome.printed.lines().collect();
            found.sort_unstable();
            let code = if expected.is_empty() { 4 } else { 0 };
            ensure(
                found == expected && outcome.code == Some(code),
                format!("{outcome:?}"),
            )
        });
    };
    lab.ok(
        "host2",
        &["weft", "dns-add", "--name", "second", "netns:c2"],
    );
    looked_up("second", &[c2.trim()]);
    looked_up("second.weft.local", &[c2.trim()]);
    lab.pings("c1", "second", SOON);
    // One name, two addresses.
    for address in ["192.0.2.1", "192.0.2.2"] {
        lab.ok("host2", &["weft", "dns-add", address, "--name", "printer"]);
    }
    looked_up("printer", &["192.0.2.1", "192.0.2.2"]);
    let shown = lab.ok("host1", &["weft", "status", "dns"]);
    assert!(shown.contains("printer"), "{shown}");
    lab.ok(
        "host2",
        &["weft", "dns-remove", "192.0.2.1", "--name", "printer"],
    );
    looked_up("printer", &["192.0.2.2"]);
    lab.ok(
        "host2",
        &["weft", "dns-remove", "--name", "second", "netns:c2"],
    );
    looked_up("second", &[]);
    looked_up("c2", &[c2.trim()]);
    // Names of a router that stops go with it.
    lab.ok("host2", &["weft", "stop"]);
    looked_up("printer", &[]);
    looked_up("c2", &[]);
}

#[test]
fn a_full_range_says_what_is_waited_for_and_waiting_can_be_given_up() {
    if !possible() {
        return;
    }
    // Eight addresses; the first and the last are not given out.
    let lab = Lab::bare("full", 2, 8);
    for (host, peers) in [("host1", &[][..]), ("host2", &["host1"])] {
        let launch = ["weft", "launch", "--ipalloc-range", "10.32.0.0/29"];
        lab.ok(host, &[&launch[..], peers].concat());
    }
    let mut given: Vec<_> = (1..=6)
        .map(|number| lab.ok("host1", &["weft", "attach", &format!("netns:c{number}")]))
        .collect();
    given.sort();
    let all: Vec<_> = (1..=6).map(|last| format!("10.32.0.{last}\n")).collect();
    assert_eq!(given, all);

    let waiting = start_attach(&lab);
    eventually("status tells who waits, and what for", SOON, || {
        let pending = lab.report("host1").ipam.unwrap().pending;
        let found = pending.iter().any(|request| {
            request.container.to_string().contains("c7") && !request.waits_for.is_empty()
        });
        ensure(found, format!("{pending:?}"))
    });
    let shown = lab.ok("host1", &["weft", "status", "ipam"]);
    assert!(shown.contains("c7"), "{shown}");
    signal(waiting.id(), Signal::SIGTERM);
    assert_ne!(finish(waiting, "weft attach").code, Some(0));
    eventually("nothing waits any more", SOON, || {
        let ipam = lab.report("host1").ipam.unwrap();
        ensure(
            ipam.pending.is_empty() && ipam.active == 6,
            format!("{ipam:?}"),
        )
    });
    let links = lab.ok("c7", &["cat", "/proc/net/dev"]);
    assert!(!links.contains("ethwe"), "{links}");

    // Who waits gets what becomes free.
    let waiting = start_attach(&lab);
    eventually("it waits again", SOON, || {
        let pending = lab.report("host1").ipam.unwrap().pending;
        ensure(!pending.is_empty(), "nothing waits")
    });
    let freed = lab.ok("host1", &["weft", "detach", "netns:c3"]);
    assert_eq!(finish(waiting, "weft attach").success(), freed);
}

fn start_attach(lab: &Lab) -> std::process::Child {
    let mut command = lab.command("host1", &["weft", "attach", "netns:c7"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}
