//! The whole service on loopback addresses, with upstream servers played by the test.

use std::io::Write as _;
use std::net::Ipv4Addr;

use tempfile::NamedTempFile;
use weft_dns::Name;
use weft_wire::PeerName;

use super::*;

#[tokio::test]
async fn names_are_answered_over_udp_and_tcp_from_the_table_as_it_is() {
    let test = Test::start(&[]).await;
    assert_eq!(test.udp(&query(1, "web.weft.local")).await, Some((1, 0, 1)));
    assert_eq!(test.tcp(&query(2, "WEB")).await, Some((2, 0, 1)));
    assert_eq!(
        test.udp(&query(3, "new.weft.local")).await,
        Some((3, 3, 0)),
        "no such name"
    );
    let mut table = NameTable::clone(&test.table.load());
    add(&mut table, "new", 9);
    test.table.store(Arc::new(table));
    assert_eq!(test.udp(&query(4, "new.weft.local")).await, Some((4, 0, 1)));
    assert_eq!(test.count(Outcome::Found), 3);
    assert_eq!(test.count(Outcome::NoName), 1);
}

#[tokio::test]
async fn what_is_not_ours_goes_upstream_and_back_unchanged_over_the_same_transport() {
    let server = Server::start(Manner::Replies).await;
    let test = Test::start(&[server.address]).await;
    assert_eq!(test.resolver.upstream(), [server.address]);
    let asked = query(7, "eXample.com");
    let expected = [&asked[..2], &[0x81, 0x83], &asked[4..], b"untouched"].concat();
    assert_eq!(test.udp_bytes(&asked).await, Some(expected.clone()));
    assert_eq!(test.tcp_bytes(&asked).await, Some(expected));
    assert_eq!(server.seen(), [("UDP", asked.clone()), ("TCP", asked)]);
    assert_eq!(test.count(Outcome::Forwarded), 2);
}

#[tokio::test]
async fn names_of_ours_never_go_upstream_even_if_nobody_has_them() {
    let server = Server::start(Manner::Replies).await;
    let test = Test::start(&[server.address]).await;
    for name in [
        "nobody",
        "nobody.weft.local",
        "x.web.weft.local",
        "weft.local",
        "example.com.weft.local",
    ] {
        assert!(test.udp(&query(1, name)).await.is_some(), "{name}");
    }
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn a_server_that_fails_or_says_nothing_is_followed_by_the_next() {
    let (closed, silent, good) = (
        free_address().await,
        Server::start(Manner::Silent).await,
        Server::start(Manner::Replies).await,
    );
    let servers = [closed, silent.address, good.address];
    let test = Test::start_patient(&servers, Duration::from_millis(700)).await;
    assert_eq!(test.udp(&query(1, "example.com")).await, Some((1, 3, 0)));
    assert_eq!(test.tcp(&query(2, "example.com")).await, Some((2, 3, 0)));
    assert_eq!(silent.seen().len(), 2);
}

#[tokio::test]
async fn without_any_upstream_reply_the_client_is_told_of_the_failure() {
    let silent = Server::start(Manner::Silent).await;
    for servers in [vec![], vec![free_address().await], vec![silent.address]] {
        let test = Test::start_patient(&servers, Duration::from_millis(50)).await;
        assert_eq!(
            test.udp(&query(5, "example.com")).await,
            Some((5, 2, 0)),
            "{servers:?}"
        );
        assert_eq!(
            test.tcp(&query(6, "example.com")).await,
            Some((6, 2, 0)),
            "{servers:?}"
        );
        assert_eq!(test.count(Outcome::Unanswered), 2);
    }
}

#[tokio::test]
async fn a_reply_with_another_id_is_not_taken_for_the_reply() {
    let forger = Server::start(Manner::RepliesWrongFirst).await;
    let test = Test::start(&[forger.address]).await;
    assert_eq!(test.udp(&query(7, "example.com")).await, Some((7, 3, 0)));
}

#[tokio::test]
async fn nothing_a_client_sends_stops_the_service() {
    let test = Test::start(&[]).await;
    let client = client(1).await;
    let good = query(1, "web");
    for len in 0..good.len() {
        client.send_to(&good[..len], test.address).await.unwrap();
        let mut damaged = good.clone();
        damaged[len] ^= 0xff;
        client.send_to(&damaged, test.address).await.unwrap();
    }
    client.send_to(&[0; 60_000], test.address).await.unwrap();
    for bytes in [
        &b"\0"[..],
        b"\0\0",
        b"\xff\xff",
        b"\0\x05hello",
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(test.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
    }
    assert_eq!(test.udp(&good).await, Some((1, 0, 1)));
    assert_eq!(test.tcp(&good).await, Some((1, 0, 1)));
}

#[tokio::test]
async fn a_connection_carries_many_queries_at_once() {
    let server = Server::start(Manner::Replies).await;
    let test = Test::start(&[server.address]).await;
    let mut stream = TcpStream::connect(test.address).await.unwrap();
    let queries = [
        query(1, "web"),
        query(2, "example.com"),
        query(3, "fifty"),
        query(4, "web"),
    ];
    let all: Vec<u8> = queries
        .iter()
        .flat_map(|q| [&(q.len() as u16).to_be_bytes(), &q[..]].concat())
        .collect();
    stream.write_all(&all).await.unwrap();
    for expected in [(1, 0, 1), (2, 3, 0), (3, 0, 50), (4, 0, 1)] {
        assert_eq!(summary(&read_message(&mut stream).await.unwrap()), expected);
    }
}

#[tokio::test]
async fn fifty_addresses_are_cut_over_udp_and_come_whole_over_tcp() {
    let test = Test::start(&[]).await;
    let cut = test.udp_bytes(&query(1, "fifty")).await.unwrap();
    assert!(cut.len() <= 512 && cut[2] & 2 != 0, "TC is set");
    assert_eq!(test.tcp(&query(1, "fifty")).await, Some((1, 0, 50)));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_rests_is_closed_even_in_the_middle_of_a_query() {
    let test = Test::start(&[]).await;
    for sent in [&b""[..], b"\0", b"\0\x10abc"] {
        let mut stream = TcpStream::connect(test.address).await.unwrap();
        stream.write_all(sent).await.unwrap();
        let mut rest = Vec::new();
        assert_eq!(
            stream.read_to_end(&mut rest).await.unwrap_or(0),
            0,
            "closed without a word"
        );
    }
}

#[tokio::test]
async fn one_client_cannot_take_all_connections() {
    let test = Test::start(&[]).await;
    let mut open = Vec::new();
    for _ in 0..MAX_CONNECTIONS / 2 {
        open.push(connection(test.address, 1).await);
    }
    let mut one_more = connection(test.address, 1).await;
    assert_eq!(
        one_more.read(&mut [0]).await.unwrap_or(0),
        0,
        "closed at once"
    );
    let mut other = connection(test.address, 2).await;
    write_message(&mut other, &query(1, "web")).await.unwrap();
    assert_eq!(summary(&read_message(&mut other).await.unwrap()), (1, 0, 1));
    drop(open);
    let served_again = async {
        loop {
            let mut again = connection(test.address, 1).await;
            let _ = write_message(&mut again, &query(2, "web")).await;
            if let Ok(reply) = read_message(&mut again).await {
                break summary(&reply);
            }
        }
    };
    assert_eq!(timeout(AMPLE, served_again).await, Ok((2, 0, 1)));
}

#[tokio::test]
async fn queries_that_wait_for_upstream_are_bounded_and_keep_nobody_else_waiting() {
    let silent = Server::start(Manner::Silent).await;
    let test = Test::start_patient(&[silent.address], AMPLE).await;
    let greedy = client(1).await;
    let most = MAX_FLIGHTS / 2;
    for id in 0..=most as u16 {
        greedy
            .send_to(&query(id, "example.com"), test.address)
            .await
            .unwrap();
    }
    let mut buffer = [0; 512];
    let (len, _) = greedy.recv_from(&mut buffer).await.unwrap();
    assert_eq!(
        summary(&buffer[..len]),
        (most as u16, 2, 0),
        "the one too many fails at once"
    );
    greedy
        .send_to(&query(1, "web"), test.address)
        .await
        .unwrap();
    let (len, _) = greedy.recv_from(&mut buffer).await.unwrap();
    assert_eq!(
        summary(&buffer[..len]),
        (1, 0, 1),
        "names of ours need no upstream"
    );
    let other = client(2).await;
    other
        .send_to(&query(9, "example.com"), test.address)
        .await
        .unwrap();
    let all_seen = async {
        while silent.seen().len() <= most {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(AMPLE, all_seen)
        .await
        .expect("the other client's query goes upstream");
    assert_eq!(test.count(Outcome::Overload), 1);
}

#[tokio::test]
async fn an_address_that_cannot_be_had_is_named_with_what_to_do() {
    let taken = Test::start(&[]).await;
    let error = try_start(taken.address).unwrap_err().to_string();
    assert!(
        error.contains(&taken.address.to_string()) && error.contains("another DNS server"),
        "{error}"
    );
    let error = try_start("203.0.113.1:53".parse().unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("203.0.113.1:53") && error.contains("an address of this host"),
        "{error}"
    );
}

#[tokio::test]
async fn a_dropped_resolver_gives_its_addresses_back() {
    let test = Test::start(&[]).await;
    let address = test.address;
    drop(test);
    let free_again = async {
        while try_start(address).is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(AMPLE, free_again)
        .await
        .expect("the sockets are closed");
}

/// Longer than anything takes that works, on however busy a machine.
const AMPLE: Duration = Duration::from_secs(30);

/// A resolver on a loopback address of its own.
struct Test {
    resolver: Resolver,
    address: SocketAddr,
    table: Arc<ArcSwap<NameTable>>,
    _resolv_conf: NamedTempFile,
}

impl Test {
    async fn start(upstream: &[SocketAddr]) -> Self {
        Self::start_patient(upstream, AMPLE).await
    }

    async fn start_patient(upstream: &[SocketAddr], fallback_timeout: Duration) -> Self {
        let mut resolv_conf = NamedTempFile::new().unwrap();
        for server in upstream {
            writeln!(resolv_conf, "nameserver {server}").unwrap();
        }
        let mut table = NameTable::new(PeerName::from_bytes([2; 6]));
        add(&mut table, "web", 1);
        (1..=50).for_each(|last| add(&mut table, "fifty", last));
        let table = Arc::new(ArcSwap::from_pointee(table));
        loop {
            // Somebody else may take the free port first.
            let address = free_address().await;
            let config = config(address, resolv_conf.path().to_owned(), fallback_timeout);
            match Resolver::start(config, table.clone()) {
                Ok(resolver) => {
                    return Self {
                        resolver,
                        address,
                        table,
                        _resolv_conf: resolv_conf,
                    };
                }
                Err(StartError::Bind { .. }) => {}
                Err(error @ StartError::Randomness(_)) => panic!("{error}"),
            }
        }
    }

    async fn udp(&self, query: &[u8]) -> Option<(u16, u8, u16)> {
        self.udp_bytes(query).await.map(|reply| summary(&reply))
    }

    async fn tcp(&self, query: &[u8]) -> Option<(u16, u8, u16)> {
        self.tcp_bytes(query).await.map(|reply| summary(&reply))
    }

    async fn udp_bytes(&self, query: &[u8]) -> Option<Vec<u8>> {
        let client = client(1).await;
        client.connect(self.address).await.unwrap();
        client.send(query).await.unwrap();
        let mut reply = vec![0; MAX_MESSAGE];
        let len = timeout(AMPLE, client.recv(&mut reply)).await.ok()?.unwrap();
        reply.truncate(len);
        Some(reply)
    }

    async fn tcp_bytes(&self, query: &[u8]) -> Option<Vec<u8>> {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        write_message(&mut stream, query).await.unwrap();
        timeout(AMPLE, read_message(&mut stream)).await.ok()?.ok()
    }

    fn count(&self, outcome: Outcome) -> u64 {
        self.resolver
            .counters()
            .find_map(|(o, count)| (o == outcome).then_some(count))
            .unwrap()
    }
}

/// The queries that came, and over which transport.
type Seen = Arc<Mutex<Vec<(&'static str, Vec<u8>)>>>;

/// An upstream server.
struct Server {
    address: SocketAddr,
    seen: Seen,
    _task: JoinSet<()>,
}

#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Replies,
    RepliesWrongFirst,
    Silent,
}

impl Server {
    async fn start(manner: Manner) -> Self {
        let (udp, tcp) = loop {
            if let Ok(sockets) = bind(free_address().await, None) {
                break sockets;
            }
        };
        let address = udp.local_addr().unwrap();
        let seen = Seen::default();
        let mut task = JoinSet::new();
        let notes = seen.clone();
        task.spawn(async move {
            let mut buffer = vec![0; 512];
            loop {
                let (len, from) = udp.recv_from(&mut buffer).await.unwrap();
                notes.lock().unwrap().push(("UDP", buffer[..len].to_vec()));
                if manner == Manner::RepliesWrongFirst {
                    let mut forged = response(&buffer[..len]);
                    forged[1] ^= 1;
                    udp.send_to(&forged, from).await.unwrap();
                }
                if manner != Manner::Silent {
                    udp.send_to(&response(&buffer[..len]), from).await.unwrap();
                }
            }
        });
        let notes = seen.clone();
        task.spawn(async move {
            let mut open = Vec::new();
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let query = read_message(&mut stream).await.unwrap();
                notes.lock().unwrap().push(("TCP", query.clone()));
                if manner != Manner::Silent {
                    write_message(&mut stream, &response(&query)).await.unwrap();
                }
                open.push(stream);
            }
        });
        Self {
            address,
            seen,
            _task: task,
        }
    }

    fn seen(&self) -> Vec<(&'static str, Vec<u8>)> {
        self.seen.lock().unwrap().clone()
    }
}

/// "No such name", with a tail no sensible server would send.
fn response(query: &[u8]) -> Vec<u8> {
    [&query[..2], &[0x81, 0x83], &query[4..], b"untouched"].concat()
}

fn query(id: u16, name: &str) -> Vec<u8> {
    let mut query = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}

/// Id, response code and number of answers.
fn summary(reply: &[u8]) -> (u16, u8, u16) {
    let number = |at: usize| u16::from_be_bytes([reply[at], reply[at + 1]]);
    assert!(reply[2] & 0x80 != 0, "not a response");
    (number(0), reply[3] & 15, number(6))
}

fn add(table: &mut NameTable, name: &str, last: u8) {
    let name = Name::new(name, &"weft.local".parse().unwrap()).unwrap();
    table
        .add_own(name, "container", [10, 32, 0, last].into())
        .unwrap();
}

fn config(address: SocketAddr, resolv_conf: PathBuf, fallback_timeout: Duration) -> ResolverConfig {
    let domain = "weft.local".parse().unwrap();
    ResolverConfig {
        listen: vec![address],
        domain,
        ttl: 1,
        resolv_conf,
        fallback_timeout,
    }
}

fn try_start(address: SocketAddr) -> Result<Resolver, StartError> {
    let table = NameTable::new(PeerName::from_bytes([2; 6]));
    let config = config(address, "/dev/null".into(), Duration::ZERO);
    Resolver::start(config, Arc::new(ArcSwap::from_pointee(table)))
}

async fn free_address() -> SocketAddr {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .unwrap()
        .local_addr()
        .unwrap()
}

/// A client with the loopback address 127.0.0.`last`.
async fn client(last: u8) -> UdpSocket {
    UdpSocket::bind((Ipv4Addr::new(127, 0, 0, last), 0))
        .await
        .unwrap()
}

async fn connection(to: SocketAddr, last: u8) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket
        .bind((Ipv4Addr::new(127, 0, 0, last), 0).into())
        .unwrap();
    socket.connect(to).await.unwrap()
}
