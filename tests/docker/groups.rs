//! Sockets of ours in containers' network namespaces: what is sent to everybody, and who hears it.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

use super::bed::Bed;
use super::command::SOON;

/// A group that nothing else on the machine listens to, and a port.
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 83, 67, 1);
const PORT: u16 = 7007;
/// How long a listener waits for one more datagram.
const MOMENT: Duration = Duration::from_millis(200);

/// Someone in a container who is in the group, hears broadcasts, and can send both.
#[derive(Debug)]
pub(crate) struct Member {
    /// What it says of itself, which is its network.
    network: String,
    socket: UdpSocket,
}

impl Member {
    /// In this container, on the interface with this address.
    #[track_caller]
    pub(crate) fn join(
        bed: &Bed,
        host: &str,
        container: &str,
        network: &str,
        address: Ipv4Addr,
    ) -> Self {
        let key = [
            "docker",
            "inspect",
            "-f",
            "{{.NetworkSettings.SandboxKey}}",
            container,
        ];
        let key = bed.ok(host, &key);
        let place = bed.inside(host, key.trim().trim_start_matches("/var"));
        Self {
            network: network.to_owned(),
            socket: socket_in(&place, address),
        }
    }

    /// Says to all of a network, in both ways, which network it is from.
    fn speak(&self, broadcast: Ipv4Addr) {
        for (way, to) in [("multicast", GROUP), ("broadcast", broadcast)] {
            let text = format!("{} {way}", self.network);
            self.socket.send_to(text.as_bytes(), (to, PORT)).unwrap();
        }
    }

    /// Adds what comes to what was heard before, until nothing comes for a moment.
    fn hear(&self, heard: &mut BTreeSet<String>) {
        let mut buffer = [0; 64];
        while let Ok((len, _)) = self.socket.recv_from(&mut buffer) {
            heard.insert(String::from_utf8_lossy(&buffer[..len]).into_owned());
        }
    }
}

/// The first of each network speaks, until all members have heard what is for them; fails if one of them
/// ever hears what is not.
#[track_caller]
pub(crate) fn each_hears_its_own_network_and_no_other(members: &[Member], broadcast: Ipv4Addr) {
    let begin = Instant::now();
    let mut speakers: Vec<&Member> = Vec::new();
    for member in members {
        if speakers.iter().all(|one| one.network != member.network) {
            speakers.push(member);
        }
    }
    let mut heard = vec![BTreeSet::new(); members.len()];
    let wanted = |member: &Member| {
        BTreeSet::from(["multicast", "broadcast"].map(|way| format!("{} {way}", member.network)))
    };
    // Once more than needed: what is on its way to the wrong ones has come by then, too.
    let mut rounds_to_go = 2;
    while rounds_to_go > 0 {
        for speaker in &speakers {
            speaker.speak(broadcast);
        }
        for (member, heard) in members.iter().zip(&mut heard) {
            member.hear(heard);
            assert!(
                heard.is_subset(&wanted(member)),
                "{member:?} heard {heard:?}"
            );
        }
        let all = members
            .iter()
            .zip(&heard)
            .all(|(member, heard)| *heard == wanted(member));
        rounds_to_go -= u8::from(all);
        assert!(
            begin.elapsed() < SOON,
            "not all have heard of all: {members:?} {heard:?}"
        );
    }
}

/// A socket stays in the namespace it was made in, so a thread goes there for a moment.
fn socket_in(namespace: &Path, address: Ipv4Addr) -> UdpSocket {
    let namespace = File::open(namespace).unwrap();
    let made = thread::spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
        socket.set_broadcast(true).unwrap();
        socket.join_multicast_v4(&GROUP, &address).unwrap();
        socket.set_read_timeout(Some(MOMENT)).unwrap();
        socket
    });
    made.join().unwrap()
}
