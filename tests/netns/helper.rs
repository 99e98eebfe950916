//! What runs inside a lab on behalf of a test: this very program, started again with a task in its
//! environment. So the tests need no tool that a machine may lack.
//!
//! A task reports line by line on standard output, each line marked; the first is `ready`. Tasks that
//! listen go on until their standard input ends.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs,
    UdpSocket,
};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{env, thread};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{LinkAddr, MsgFlags, SockaddrLike, bind, sendto};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use socket2::{Domain, Protocol, Socket, Type};
use weft_net::Netlink;
use weft_net::fdb::{fdb_dump_extern, fdb_replace};
use weft_wire::MacAddr;

use super::machine;

/// The environment variable that holds the task.
pub(crate) const TASK: &str = "NETNS_TASK";
/// What reports begin with.
pub(crate) const MARK: &str = "helper: ";
/// An Ethernet type set aside for local experiments (IEEE 802).
pub(crate) const ODD_TYPE: u16 = 0x88b5;
/// The router's port of the bridge, on every host of a lab.
const TAP: &str = "weft-tap";
/// All Ethernet types (ETH_P_ALL).
const ALL_TYPES: u16 = 3;
/// How long a listener waits before it looks whether it is to end.
const LOOK_UP: Duration = Duration::from_millis(50);

#[test]
fn helper() {
    match env::var(TASK) {
        Ok(task) => perform(&task.split(' ').collect::<Vec<_>>()),
        Err(_) => streams_differ_by_seed_only(),
    }
}

fn perform(task: &[&str]) {
    match task {
        ["tcp-serve", at] => tcp_serve(at.parse().unwrap()),
        ["tcp-call", name, port, bytes] => tcp_call(name, port.parse().unwrap(), bytes),
        ["flow-serve", at] => flow_serve(at.parse().unwrap()),
        ["flow", to, port] => flow(to, port.parse().unwrap()),
        ["numbers-hear", port] => numbers_hear(port.parse().unwrap()),
        ["numbers-say", to, port] => numbers_say(to, port.parse().unwrap()),
        ["vxlan-forge", to, port] => vxlan_forge(to, port.parse().unwrap()),
        ["udp-echo", at] => udp_echo(at.parse().unwrap()),
        ["udp-lengths", to, port, step] => {
            udp_lengths(to, port.parse().unwrap(), step.parse().unwrap());
        }
        ["udp-hear", group, port] => udp_hear(group, port.parse().unwrap()),
        ["udp-say", to, port, text] => udp_say(to, port.parse().unwrap(), text),
        ["udp-noise", to, port, count] => udp_noise(to, port.parse().unwrap(), count),
        ["udp-replay", to, port, file] => udp_replay(to, port.parse().unwrap(), file),
        ["tcp-noise", to, port, count] => tcp_noise(to, port.parse().unwrap(), count),
        ["frames-hear"] => frames_hear(),
        ["frames-say", link, count, pause] => frames_say(link, count, pause.parse().unwrap()),
        ["frames-as", link, mac, count, pause] => {
            frames_as(link, mac, count, pause.parse().unwrap())
        }
        ["del-link", link] => del_link(link),
        ["machine-echo"] => machine::echo(),
        ["machine-call", count, mtu] => machine::call(count, mtu, false),
        ["machine-call", count, mtu, "lossy"] => machine::call(count, mtu, true),
        ["bind", container, mac, port, addr] => bind_address(container, mac, port, addr),
        ["bridge-entry", mac] => bridge_entry(mac),
        ["bridge-entries"] => bridge_entries(),
        ["http-get", from, path] => http_get(from, path),
        ["capture", link, file] => capture(link, file),
        ["add-pool", subnet] => add_pool(subnet),
        ["add-address", link, cidr] => change_address(link, cidr, true),
        ["del-address", link, cidr] => change_address(link, cidr, false),
        unknown => panic!("no such task: {unknown:?}"),
    }
}

pub(super) fn report(line: &str) {
    println!("{MARK}{line}");
    io::stdout().flush().unwrap();
}

/// Asks the router of this host, as the Docker plugin does, for a pool.
fn add_pool(subnet: &str) {
    report("ready");
    let client = weft_api::Client::new(weft_api::routes::DEFAULT_SOCKET);
    match wait_for(client.add_pool(subnet.parse().unwrap())) {
        Ok(pool) => report(&pool.to_string()),
        Err(error) => report(&error.to_string()),
    }
}

/// Becomes true when standard input ends.
pub(super) fn told_to_end() -> Arc<AtomicBool> {
    let told = Arc::new(AtomicBool::new(false));
    let tell = Arc::clone(&told);
    thread::spawn(move || {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        tell.store(true, Ordering::Relaxed);
    });
    told
}

/// Whether a read only found nothing in time.
fn nothing_yet(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Bytes that only the same seed gives again.
fn stream(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    ChaCha20Rng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// Writes so many of these bytes.
fn write_stream(to: &mut impl Write, seed: u64, mut len: usize) {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let mut bytes = vec![0; CHUNK];
    while len > 0 {
        let part = &mut bytes[..len.min(CHUNK)];
        rng.fill_bytes(part);
        to.write_all(part).unwrap();
        len -= part.len();
    }
}

/// Reads to the end, and compares with these bytes; answers how many there were.
fn read_stream(from: &mut impl Read, seed: u64) -> usize {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let (mut expected, mut came) = (vec![0; CHUNK], Vec::new());
    let mut len = 0;
    loop {
        came.clear();
        from.take(CHUNK as u64).read_to_end(&mut came).unwrap();
        rng.fill_bytes(&mut expected);
        let same = came == expected[..came.len()];
        assert!(same, "bytes changed on their way, behind the first {len}");
        len += came.len();
        if came.len() < CHUNK {
            return len;
        }
    }
}

/// What is compared at a time; whole words of the generator, so that it makes the same bytes in any parts.
const CHUNK: usize = 1 << 16;

fn streams_differ_by_seed_only() {
    assert_eq!(stream(1, 100), stream(1, 100));
    assert_ne!(stream(1, 100), stream(2, 100));
}

const THERE: u64 = 1;
const BACK: u64 = 2;

/// Takes one transfer, and sends as much back.
fn tcp_serve(at: SocketAddr) {
    let listener = TcpListener::bind(at).unwrap();
    report("ready");
    let (mut peer, _) = listener.accept().unwrap();
    let came = read_stream(&mut peer, THERE);
    write_stream(&mut peer, BACK, came);
    report(&format!("{came} bytes"));
}

fn tcp_call(name: &str, port: u16, bytes: &str) {
    report("ready");
    let mut peer = TcpStream::connect((name, port)).unwrap();
    write_stream(&mut peer, THERE, bytes.parse().unwrap());
    peer.shutdown(Shutdown::Write).unwrap();
    let came = read_stream(&mut peer, BACK);
    report(&format!("{came} bytes"));
}

/// Takes a flow to its end.
fn flow_serve(at: SocketAddr) {
    let listener = TcpListener::bind(at).unwrap();
    report("ready");
    let (mut peer, _) = listener.accept().unwrap();
    let mut expected = ChaCha20Rng::seed_from_u64(THERE);
    let mut total = 0;
    let mut piece = [0; PIECE];
    let mut came = [0; PIECE];
    loop {
        let mut len = 0;
        while len < PIECE {
            match peer.read(&mut came[len..]).unwrap() {
                0 => break,
                read => len += read,
            }
        }
        if len == 0 {
            break;
        }
        expected.fill_bytes(&mut piece);
        assert!(came[..len] == piece[..len], "other bytes after {total}");
        total += len;
    }
    report(&format!("{total} bytes"));
}

/// One connection that sends without haste until it is told to end.
fn flow(to: &str, port: u16) {
    let mut peer = TcpStream::connect((to, port)).unwrap();
    let mut bytes = ChaCha20Rng::seed_from_u64(THERE);
    let end = told_to_end();
    report("ready");
    let mut total = 0;
    let mut piece = [0; PIECE];
    while !end.load(Ordering::Relaxed) {
        bytes.fill_bytes(&mut piece);
        peer.write_all(&piece).unwrap();
        total += piece.len();
        thread::sleep(Duration::from_millis(1));
    }
    report(&format!("{total} bytes"));
}

/// What a flow sends at a time: some segments.
const PIECE: usize = 8192;

/// Counts numbered datagrams: how many came, how often one came again, how many were damaged.
fn numbers_hear(port: u16) {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    socket.set_read_timeout(Some(LOOK_UP)).unwrap();
    let end = told_to_end();
    report("ready");
    let mut seen = std::collections::BTreeSet::new();
    let (mut again, mut damaged) = (0, 0);
    let mut buffer = [0; 2048];
    while !end.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((len, _)) => {
                let number = u64::from_be_bytes(buffer[..8].try_into().unwrap());
                damaged += u32::from(buffer[..len] != numbered(number));
                again += u32::from(!seen.insert(number));
            }
            Err(error) => assert!(nothing_yet(&error), "{error}"),
        }
    }
    report(&format!(
        "{} came, {again} again, {damaged} damaged",
        seen.len()
    ));
}

/// Sends numbered datagrams until it is told to end.
fn numbers_say(to: &str, port: u16) {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let end = told_to_end();
    report("ready");
    for number in 0.. {
        if end.load(Ordering::Relaxed) {
            break;
        }
        // Nobody may be listening at the moment; that is told of an earlier one.
        let _ = socket.send_to(&numbered(number), (to, port));
        thread::sleep(Duration::from_millis(2));
    }
}

fn numbered(number: u64) -> Vec<u8> {
    let len = 200 + usize::try_from(number % 1000).unwrap();
    [number.to_be_bytes().to_vec(), stream(number, len)].concat()
}

/// VXLAN packets of the default network with a broadcast of the odd type in them.
fn vxlan_forge(to: &str, port: u16) {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    report("ready");
    for number in 0..20 {
        // Flags: there is a network number. It is 0.
        let mut packet = vec![8, 0, 0, 0, 0, 0, 0, 0];
        packet.extend([0xff; 6]);
        packet.extend([2, 0xf0, 0, 0, 0, 1]);
        packet.extend(ODD_TYPE.to_be_bytes());
        packet.extend(format!("forged {number}").as_bytes());
        packet.resize(8 + 60, 0);
        // That nobody listens is told of an earlier one.
        let _ = socket.send_to(&packet, (to, port));
        thread::sleep(Duration::from_millis(5));
    }
}

/// Sends back each datagram, whatever it is.
fn udp_echo(at: SocketAddr) {
    let socket = UdpSocket::bind(at).unwrap();
    socket.set_read_timeout(Some(LOOK_UP)).unwrap();
    let end = told_to_end();
    report("ready");
    let mut buffer = vec![0; 1 << 16];
    while !end.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((len, from)) => assert_eq!(socket.send_to(&buffer[..len], from).unwrap(), len),
            Err(error) => assert!(nothing_yet(&error), "{error}"),
        }
    }
}

/// Datagrams of every length, from 2900 bytes on of each `step`th, three of each so that they can travel
/// together; each must come back as it was, and once.
fn udp_lengths(to: &str, port: u16, step: usize) {
    let to = (to, port).to_socket_addrs().unwrap().next().unwrap();
    let any: IpAddr = if to.is_ipv6() {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket.set_read_timeout(Some(LOOK_UP * 100)).unwrap();
    report("ready");
    let mut buffer = vec![0; 1 << 16];
    for len in (0..2900).chain((2900..=9000).step_by(step)) {
        let sent = [0, 1, 2].map(|nth| stream(nth, len));
        for datagram in &sent {
            socket.send_to(datagram, to).unwrap();
        }
        for datagram in &sent {
            let came = socket.recv(&mut buffer).unwrap();
            assert!(&buffer[..came] == datagram, "length {len} came as {came}");
        }
    }
    socket.set_read_timeout(Some(LOOK_UP * 6)).unwrap();
    let late = socket.recv(&mut buffer).map_err(|error| error.kind());
    assert!(late.is_err(), "a datagram came a second time: {late:?}");
    report("all came back");
}

/// Reports each datagram's text; `group` is a multicast group to join, or `-`.
fn udp_hear(group: &str, port: u16) {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    socket.set_read_timeout(Some(LOOK_UP)).unwrap();
    if group != "-" {
        let group = group.parse().unwrap();
        socket
            .join_multicast_v4(&group, &Ipv4Addr::UNSPECIFIED)
            .unwrap();
    }
    let end = told_to_end();
    report("ready");
    let mut buffer = [0; 2048];
    while !end.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((len, _)) => report(&String::from_utf8_lossy(&buffer[..len])),
            Err(error) => assert!(nothing_yet(&error), "{error}"),
        }
    }
}

fn udp_say(to: &str, port: u16, text: &str) {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.set_broadcast(true).unwrap();
    report("ready");
    socket.send_to(text.as_bytes(), (to, port)).unwrap();
}

/// Random bytes of random lengths, at a speed that a socket buffer bears.
fn udp_noise(to: &str, port: u16, count: &str) {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let mut rng = ChaCha20Rng::seed_from_u64(3);
    report("ready");
    let count: usize = count.parse().unwrap();
    for number in 0..count {
        let mut datagram = vec![0; (rng.next_u32() % 1400) as usize];
        rng.fill_bytes(&mut datagram);
        send_unhurried(&socket, &datagram, (to, port), number);
    }
}

/// The UDP payloads of captured frames that go to `port`: once more as they are, cut short, and with
/// each byte of their beginning changed.
fn udp_replay(to: &str, port: u16, file: &str) {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let mut rng = ChaCha20Rng::seed_from_u64(4);
    report("ready");
    let mut sent = 0;
    for frame in read_capture(&std::fs::read(file).unwrap()) {
        let Some(payload) = udp_payload(frame, port) else {
            continue;
        };
        let cut = &payload[..rng.next_u32() as usize % payload.len()];
        for datagram in [payload, cut] {
            send_unhurried(&socket, datagram, (to, port), sent);
            sent += 1;
        }
        // Version, kind, receiver index and counter are all within the first bytes.
        for position in 0..payload.len().min(24) {
            let mut changed = payload.to_vec();
            changed[position] ^= 0x40;
            send_unhurried(&socket, &changed, (to, port), sent);
            sent += 1;
        }
    }
    report(&format!("{sent} sent"));
}

/// An ICMP "port unreachable" that came back earlier shows as an error of a later send; it is none of ours.
fn send_unhurried(socket: &UdpSocket, datagram: &[u8], to: (&str, u16), number: usize) {
    let _ = socket.send_to(datagram, to);
    if number % 64 == 63 {
        thread::sleep(Duration::from_millis(2));
    }
}

/// Connections that begin with random bytes; whatever is answered, it must be bounded and end.
fn tcp_noise(to: &str, port: u16, count: &str) {
    let mut rng = ChaCha20Rng::seed_from_u64(5);
    report("ready");
    let count: usize = count.parse().unwrap();
    for _ in 0..count {
        let Ok(mut peer) = TcpStream::connect((to, port)) else {
            continue;
        };
        let mut bytes = vec![0; (rng.next_u32() % 4096) as usize];
        rng.fill_bytes(&mut bytes);
        // The other end may have closed already, that is its right.
        let _ = peer.write_all(&bytes);
    }
}

/// Reports the lines of a page.
fn http_get(from: &str, path: &str) {
    let mut peer = TcpStream::connect(from).unwrap();
    report("ready");
    write!(
        peer,
        "GET {path} HTTP/1.0\r\nHost: {from}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    peer.read_to_string(&mut text).unwrap();
    let (head, page) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(" 200 "), "{head}");
    page.lines().for_each(report);
}

/// Reports the number in each frame of the odd type.
fn frames_hear() {
    let mut socket = packet_socket(ODD_TYPE);
    let end = told_to_end();
    report("ready");
    let mut frame = [0; 2048];
    while !end.load(Ordering::Relaxed) {
        match socket.read(&mut frame) {
            Ok(len) => {
                let text = String::from_utf8_lossy(&frame[ETHERNET..len]);
                report(text.trim_end_matches('\0'));
            }
            Err(error) => assert!(nothing_yet(&error), "{error}"),
        }
    }
}

/// Numbered broadcasts of the odd type, with a pause in milliseconds.
fn frames_say(link: &str, count: &str, pause: u64) {
    let mac = link_named(link).addr().unwrap();
    frames_from(mac, link, count, pause);
}

/// The same from a MAC that the link does not have.
fn frames_as(link: &str, mac: &str, count: &str, pause: u64) {
    let mac: MacAddr = mac.parse().unwrap();
    frames_from(mac.to_bytes(), link, count, pause);
}

/// Takes a link away, as when its container ends.
fn del_link(link: &str) {
    report("ready");
    wait_for(async { Netlink::new().unwrap().del_link(link).await }).unwrap();
}

/// Tells the router of this host, as whoever attaches a container does, which address an interface has.
fn bind_address(container: &str, mac: &str, port: &str, addr: &str) {
    report("ready");
    let binding = weft_api::types::Bind {
        container: container.parse().unwrap(),
        network: weft_wire::NetworkKey::Default,
        mac: mac.parse().unwrap(),
        port: port.to_owned(),
        addresses: vec![addr.parse().unwrap()],
    };
    let client = weft_api::Client::new(weft_api::routes::DEFAULT_SOCKET);
    wait_for(client.bind(&binding)).unwrap();
}

/// Has the bridge know a MAC, as a router does.
fn bridge_entry(mac: &str) {
    report("ready");
    let mac = mac.parse().unwrap();
    wait_for(async { fdb_replace(&Netlink::new().unwrap(), mac, TAP).await }).unwrap();
}

/// Reports all MACs that a router has the bridge know.
fn bridge_entries() {
    report("ready");
    let macs = wait_for(async { fdb_dump_extern(&Netlink::new().unwrap(), TAP).await });
    macs.unwrap()
        .iter()
        .for_each(|mac| report(&mac.to_string()));
}

fn wait_for<T>(what: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread();
    { runtime }.enable_all().build().unwrap().block_on(what)
}

fn frames_from(mac: [u8; 6], link: &str, count: &str, pause: u64) {
    let link = link_named(link);
    let socket = packet_socket(ODD_TYPE);
    report("ready");
    let count: u32 = count.parse().unwrap();
    for number in 0..count {
        let mut frame = [0xff; 6].to_vec();
        frame.extend(mac);
        frame.extend(ODD_TYPE.to_be_bytes());
        frame.extend(format!("{number}").as_bytes());
        frame.resize(60, 0);
        let sent = sendto(socket.as_raw_fd(), &frame, &link, MsgFlags::empty()).unwrap();
        assert_eq!(sent, frame.len());
        thread::sleep(Duration::from_millis(pause));
    }
}

/// Writes all frames of a link to a file, each after its length.
fn capture(link: &str, file: &str) {
    let link = link_named(link);
    let mut socket = packet_socket(ALL_TYPES);
    socket.set_recv_buffer_size(4 << 20).unwrap();
    bind(socket.as_raw_fd(), &link).unwrap();
    let mut file = File::create(file).unwrap();
    let end = told_to_end();
    report("ready");
    let mut frame = vec![0; 1 << 17];
    let mut count = 0;
    let mut ending: Option<Instant> = None;
    // What was under way when we were told is still taken.
    while ending.is_none_or(|since| since.elapsed() < LOOK_UP * 4) {
        match socket.read(&mut frame) {
            Ok(len) => {
                file.write_all(&u32::try_from(len).unwrap().to_be_bytes())
                    .unwrap();
                file.write_all(&frame[..len]).unwrap();
                count += 1;
            }
            Err(error) => assert!(nothing_yet(&error), "{error}"),
        }
        if end.load(Ordering::Relaxed) {
            ending.get_or_insert_with(Instant::now);
        }
    }
    report(&format!("{count} frames"));
}

/// Length of an Ethernet header.
const ETHERNET: usize = 14;

/// The frames `capture` wrote.
pub(crate) fn read_capture(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut frames = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk() {
        let (frame, rest) = rest.split_at(u32::from_be_bytes(*len) as usize);
        frames.push(frame);
        bytes = rest;
    }
    frames
}

/// The payload of an IPv4 UDP frame to this port, if it is one and has any.
pub(crate) fn udp_payload(frame: &[u8], port: u16) -> Option<&[u8]> {
    let ip = frame.get(ETHERNET..)?;
    let header = usize::from(ip.first()? & 15) * 4;
    let is_udp = frame.get(12..14)? == [8, 0] && ip.get(9)? == &17;
    let udp = ip.get(header..)?;
    let for_port = udp.get(2..4)? == port.to_be_bytes();
    let len = usize::from(u16::from_be_bytes(udp.get(4..6)?.try_into().ok()?));
    let payload = udp.get(8..len)?;
    (is_udp && for_port && !payload.is_empty()).then_some(payload)
}

fn packet_socket(kind: u16) -> Socket {
    let protocol = Protocol::from(i32::from(kind.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).unwrap();
    socket.set_read_timeout(Some(LOOK_UP)).unwrap();
    socket
}

fn link_named(name: &str) -> LinkAddr {
    let mut links = getifaddrs().unwrap();
    let link = links.find_map(|link| {
        let address = link.address?;
        (link.interface_name == name)
            .then(|| address.as_link_addr().copied())
            .flatten()
    });
    let link = link.unwrap_or_else(|| panic!("no link {name}"));
    assert!(link.len() > 0, "{name} has no hardware address");
    link
}

/// Gives a link an address, or takes one from it.
fn change_address(link: &str, cidr: &str, add: bool) {
    let (addr, prefix) = cidr.split_once('/').unwrap();
    let (addr, prefix) = (addr.parse().unwrap(), prefix.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(async {
        let netlink = weft_net::Netlink::new().unwrap();
        match add {
            true => netlink.add_address(link, addr, prefix).await.unwrap(),
            false => netlink.del_address(link, addr, prefix).await.unwrap(),
        }
    });
    report("ready");
    report("done");
}
