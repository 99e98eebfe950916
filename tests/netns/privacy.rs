//! What somebody on the way between two hosts sees: sealed bytes, and nothing of what is in them.

use std::fs;

use super::helper::{read_capture, udp_payload};
use super::support::{Lab, SOON, possible, shared_file};

/// Long enough not to come up by chance, and not a word of the program.
const PAYLOAD: &str = "PAYLOAD-that-nobody-on-the-way-may-read";
const CONTAINER: &str = "container-whose-name-is-nobodys-business";
const NICKNAME: &str = "nickname-whose-name-is-nobodys-business";

#[test]
fn nothing_but_sealed_bytes_crosses_the_lan() {
    if !possible() {
        return;
    }
    // Without a password too: who may join is then not checked, but all is sealed.
    for launch in [&[][..], &["--password", "a-password-for-the-lan"]] {
        let lab = Lab::bare("capture", 2, 1);
        let folder = tempfile::tempdir().unwrap();
        let (path, text) = shared_file(&folder, "frames");
        let capture = lab.helper("lan", &["capture", "host1", &text]);
        bring_to_life(&lab, launch);
        let hearer = lab.helper("c2", &["udp-hear", "-", "7001"]);
        for _ in 0..20 {
            lab.task("c1", &["udp-say", CONTAINER, "7001", PAYLOAD]);
        }
        assert_eq!(hearer.line(), PAYLOAD, "the payload did cross");
        hearer.end();
        capture.end();
        nothing_shows(&fs::read(path).unwrap());
    }
}

/// Routers are launched while the capture runs, so that all they ever say to each other is in it.
fn bring_to_life(lab: &Lab, launch: &[&str]) {
    let words = [&["weft", "launch"], launch].concat();
    lab.ok("host1", &[&words[..], &["--nickname", NICKNAME]].concat());
    lab.ok("host2", &[&words[..], &["host1"]].concat());
    lab.ok("host1", &["weft", "attach", "--name", "c1", "netns:c1"]);
    lab.ok(
        "host2",
        &["weft", "attach", "--name", CONTAINER, "netns:c2"],
    );
    // By name: so the name was gossiped.
    lab.pings("c1", CONTAINER, SOON);
    let peers = lab.ok("host2", &["weft", "status", "peers"]);
    assert!(peers.contains(NICKNAME), "{peers}");
}

fn nothing_shows(capture: &[u8]) {
    let frames = read_capture(capture);
    let sealed = frames
        .iter()
        .filter(|frame| udp_payload(frame, 6783).is_some());
    let sealed = sealed.count();
    assert!(sealed >= 20, "only {sealed} datagrams in the capture");
    let words = [
        PAYLOAD,
        CONTAINER,
        NICKNAME,
        "weft.local",
        "weft\u{5}local",
        "host1",
        "host2",
        "netns",
        "0.1.0",
    ];
    for word in words {
        let word = word.as_bytes();
        let shows = |frame: &&&[u8]| frame.windows(word.len()).any(|part| part == word);
        let found = frames.iter().find(shows);
        assert!(
            found.is_none(),
            "{} shows in {found:?}",
            String::from_utf8_lossy(word)
        );
    }
    // The resolver's address and the containers' are inside, never outside.
    for frame in &frames {
        let outer = frame.get(26..34).unwrap_or_default();
        assert!(
            !(frame.get(12..14) == Some(&[8, 0])
                && (outer.starts_with(&[10]) || outer.get(4) == Some(&10))),
            "a container's address on the LAN: {frame:?}"
        );
    }
}
