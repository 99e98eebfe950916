//! Containers of the tests are namespaces with nothing in them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::*;
use crate::addresses::{link_of, subnet_of};
use crate::bridge::{BridgeConfig, dns_address, enslave_tap, ensure_bridge};
use crate::links::mtu_of;
use crate::netlink::attribute;
use crate::netns::run_in;
use crate::tap::Tap;
use crate::testing;

const DNS: Ipv4Addr = Ipv4Addr::new(169, 254, 67, 83);
const DEADLINE: Option<Duration> = Some(Duration::from_secs(5));

fn cidr(text: &str) -> (IpAddr, u8) {
    let (addr, prefix) = text.split_once('/').unwrap();
    (addr.parse().unwrap(), prefix.parse().unwrap())
}

fn spec(number: u8, addresses: &[&str]) -> AttachSpec {
    AttachSpec {
        bridge: "weft".to_owned(),
        host_ifname: format!("weftpl{number}"),
        ifname: "ethwe".to_owned(),
        mac: MacAddr::from_bytes([2, 0, 0, 0, 0, number]),
        addresses: addresses.iter().map(|text| cidr(text)).collect(),
        mtu: 1376,
        trains: true,
        multicast_route: true,
        dns: Some(DNS),
    }
}

async fn make_bridge(netlink: &Netlink) {
    let mac = MacAddr::from_bytes([0x7a, 0, 0, 0, 0, 9]);
    let config = BridgeConfig {
        name: "weft".to_owned(),
        mac,
        mtu: 1376,
    };
    ensure_bridge(netlink, &config).await.unwrap();
}

/// The subnets of all routes in a container through its interface.
async fn routes(ns: &NetNs) -> Vec<(Ipv4Addr, u8)> {
    let listed = with_netlink(ns, async |_, there| {
        let index = there.link_index("ethwe").await.unwrap();
        let routes = there.list_routes(254).await.unwrap();
        routes
            .iter()
            .filter(|route| link_of(route) == Some(index))
            .filter_map(subnet_of)
            .collect()
    });
    listed.await.unwrap()
}

fn udp_in(ns: &NetNs, addr: &str) -> UdpSocket {
    let socket = run_in(ns, || UdpSocket::bind(addr)).unwrap().unwrap();
    socket.set_read_timeout(DEADLINE).unwrap();
    socket
}

#[test]
fn an_attached_container_has_what_was_asked_for() {
    testing::in_namespace(async |netlink, _| {
        make_bridge(&netlink).await;
        let ns = NetNs::create().unwrap();
        let wanted = spec(1, &["10.32.0.1/12", "10.99.0.1/16", "fd00::1/64"]);
        let attached = attach(&ns, &wanted).await.unwrap();
        assert_eq!(attached.host_ifname, "weftpl1");
        let view = InterfaceView {
            name: "ethwe".to_owned(),
            mac: attached.mac,
            addresses: wanted.addresses.clone(),
        };
        assert_eq!(inspect(&ns, "ethwe").await.unwrap(), [view]);
        let ways = routes(&ns).await;
        for way in [(MULTICAST, 4), (DNS, 32), (Ipv4Addr::new(10, 32, 0, 0), 12)] {
            assert!(ways.contains(&way), "{way:?} in {ways:?}");
        }
        let port = netlink.link("weftpl1").await.unwrap();
        assert_eq!(mtu_of(&port), Some(1376));
        assert_eq!(
            master_of(&port),
            Some(netlink.link_index("weft").await.unwrap())
        );
        let inside = with_netlink(&ns, async |_, there| {
            mtu_of(&there.link("ethwe").await.unwrap())
        });
        assert_eq!(inside.await.unwrap(), Some(1376));
    });
}

#[test]
fn super_frames_are_as_long_as_a_train_if_the_router_sends_them() {
    testing::in_namespace(async |netlink, _| {
        make_bridge(&netlink).await;
        let mut longest = Vec::new();
        for (number, trains) in [(1, true), (2, false)] {
            let ns = NetNs::create().unwrap();
            let wanted = AttachSpec {
                trains,
                ..spec(number, &["10.32.0.1/12"])
            };
            attach(&ns, &wanted).await.unwrap();
            let most = with_netlink(&ns, async |_, there| {
                let link = there.link("ethwe").await.unwrap();
                attribute!(link.attributes, LinkAttribute::GsoMaxSegs(most) => *most)
            });
            longest.push(most.await.unwrap());
        }
        // 45 datagrams of 1376 bytes and what goes around them are 64 KiB. The kernel's own limit is higher.
        assert_eq!(longest[0], Some(45));
        assert!(longest[1] > Some(64), "{longest:?}");
    });
}

#[test]
fn containers_reach_each_other_at_once() {
    testing::in_namespace(async |netlink, _| {
        make_bridge(&netlink).await;
        let (one, other) = (NetNs::create().unwrap(), NetNs::create().unwrap());
        attach(&one, &spec(1, &["10.32.0.1/12", "fd00::1/64"]))
            .await
            .unwrap();
        attach(&other, &spec(2, &["10.32.0.2/12", "fd00::2/64"]))
            .await
            .unwrap();
        let mut buf = [0; 2048];
        for (from, to) in [
            ("10.32.0.1:7000", "10.32.0.2:7000"),
            ("[fd00::1]:7000", "[fd00::2]:7000"),
        ] {
            let (client, server) = (udp_in(&one, from), udp_in(&other, to));
            // As long as one frame takes, with IPv6.
            client.send_to(&[7; 1376 - 48], to).unwrap();
            let (len, back) = server.recv_from(&mut buf).unwrap();
            assert_eq!((len, back), (1376 - 48, from.parse().unwrap()));
            server.send_to(b"back", back).unwrap();
            assert_eq!(client.recv(&mut buf).unwrap(), 4);
        }
    });
}

#[test]
fn broadcast_and_multicast_leave_by_the_interface() {
    testing::in_namespace(async |netlink, _| {
        make_bridge(&netlink).await;
        let (one, other) = (NetNs::create().unwrap(), NetNs::create().unwrap());
        attach(&one, &spec(1, &["10.32.0.1/12"])).await.unwrap();
        attach(&other, &spec(2, &["10.32.0.2/12"])).await.unwrap();
        let (client, server) = (udp_in(&one, "0.0.0.0:7000"), udp_in(&other, "0.0.0.0:7000"));
        client.set_broadcast(true).unwrap();
        let group = Ipv4Addr::new(239, 1, 2, 3);
        run_in(&other, || {
            server.join_multicast_v4(&group, &Ipv4Addr::UNSPECIFIED)
        })
        .unwrap()
        .unwrap();
        let mut buf = [0; 64];
        for to in ["10.47.255.255:7000", "239.1.2.3:7000"] {
            client.send_to(b"all", to).unwrap();
            let (_, from) = server.recv_from(&mut buf).unwrap();
            assert_eq!(from, "10.32.0.1:7000".parse::<SocketAddr>().unwrap());
        }
    });
}

#[test]
fn the_resolvers_address_is_reached_whatever_the_subnet() {
    testing::in_namespace(async |netlink, host| {
        make_bridge(&netlink).await;
        dns_address(&netlink, &["weft"], DNS, &[cidr("10.32.0.0/12")])
            .await
            .unwrap();
        let ns = NetNs::create().unwrap();
        attach(&ns, &spec(1, &["10.33.7.1/24"])).await.unwrap();
        let (server, client) = (
            udp_in(&host, "169.254.67.83:53"),
            udp_in(&ns, "0.0.0.0:7000"),
        );
        client.send_to(b"who", "169.254.67.83:53").unwrap();
        let mut buf = [0; 64];
        let (_, from) = server.recv_from(&mut buf).unwrap();
        assert_eq!(from, "10.33.7.1:7000".parse::<SocketAddr>().unwrap());
        server.send_to(b"me", from).unwrap();
        let (_, from) = client.recv_from(&mut buf).unwrap();
        assert_eq!(from, "169.254.67.83:53".parse::<SocketAddr>().unwrap());
    });
}

#[test]
fn a_second_attach_only_adds_addresses() {
    testing::in_namespace(async |netlink, _| {
        make_bridge(&netlink).await;
        let ns = NetNs::create().unwrap();
        let first = attach(&ns, &spec(1, &["10.32.0.1/12"])).await.unwrap();
        let again = attach(&ns, &spec(2, &["10.32.0.1/12", "10.32.0.2/12"]))
            .await
            .unwrap();
        assert_eq!(again, first);
        assert!(!netlink.exists("weftpl2").await.unwrap());
        let view = inspect(&ns, "ethwe").await.unwrap().remove(0);
        assert_eq!(view.addresses, [cidr("10.32.0.1/12"), cidr("10.32.0.2/12")]);
    });
}

#[test]
fn an_ipv6_address_has_the_prefix_it_was_attached_with_last() {
    testing::in_namespace(async |netlink, _| {
        make_bridge(&netlink).await;
        let ns = NetNs::create().unwrap();
        for wanted in ["fd00::1/96", "fd00::1/64", "fd00::1/64", "fd00::1/112"] {
            attach(&ns, &spec(1, &[wanted])).await.unwrap();
            let views = inspect(&ns, "ethwe").await.unwrap();
            assert_eq!(views[0].addresses, [cidr(wanted)]);
        }
    });
}

#[test]
fn the_interface_goes_with_its_last_address() {
    testing::in_namespace(async |netlink, _| {
        make_bridge(&netlink).await;
        let ns = NetNs::create().unwrap();
        let (first, second) = (cidr("10.32.0.1/12"), cidr("10.32.0.2/12"));
        attach(&ns, &spec(1, &["10.32.0.1/12", "10.32.0.2/12"]))
            .await
            .unwrap();
        let never = cidr("10.32.0.3/12");
        assert_eq!(
            detach(&ns, "ethwe", Some(&[first, never])).await.unwrap(),
            [first]
        );
        // The second was in the same subnet, and the routes are the interface's.
        assert_eq!(inspect(&ns, "ethwe").await.unwrap()[0].addresses, [second]);
        assert!(routes(&ns).await.contains(&(DNS, 32)));
        assert_eq!(
            detach(&ns, "ethwe", Some(&[second])).await.unwrap(),
            [second]
        );
        assert_eq!(inspect(&ns, "ethwe").await.unwrap(), []);
        assert!(!netlink.exists("weftpl1").await.unwrap());
        assert_eq!(detach(&ns, "ethwe", None).await.unwrap(), []);
        attach(&ns, &spec(1, &["10.32.0.1/12"])).await.unwrap();
        assert_eq!(detach(&ns, "ethwe", None).await.unwrap(), [first]);
        assert_eq!(
            netlink.list_links("weftpl").await.unwrap(),
            Vec::<String>::new()
        );
    });
}

#[test]
fn a_failed_attach_leaves_nothing_behind() {
    testing::in_namespace(async |netlink, _| {
        let ns = NetNs::create().unwrap();
        let error = attach(&ns, &spec(1, &["10.32.0.1/12"])).await.unwrap_err();
        assert!(matches!(error, AttachError::NoBridge(_)), "{error}");
        make_bridge(&netlink).await;
        let error = attach(&ns, &spec(1, &["10.32.0.1/12", "10.32.0.2/33"]))
            .await
            .unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("cannot add the address 10.32.0.2/33"),
            "{error}"
        );
        let error = attach(
            &ns,
            &AttachSpec {
                mtu: 70_000,
                ..spec(1, &[])
            },
        )
        .await
        .unwrap_err();
        assert!(
            error.to_string().starts_with("cannot add the veth pair"),
            "{error}"
        );
        assert_eq!(netlink.list_links("").await.unwrap(), ["lo", "weft"]);
        assert_eq!(inspect(&ns, "ethwe").await.unwrap(), []);
    });
}

#[test]
fn a_failed_second_attach_leaves_the_first() {
    testing::in_namespace(async |netlink, _| {
        make_bridge(&netlink).await;
        let ns = NetNs::create().unwrap();
        attach(&ns, &spec(1, &["10.32.0.1/12"])).await.unwrap();
        attach(&ns, &spec(1, &["10.32.0.2/33"])).await.unwrap_err();
        assert_eq!(
            inspect(&ns, "ethwe").await.unwrap()[0].addresses,
            [cidr("10.32.0.1/12")]
        );
    });
}

#[test]
fn interfaces_and_names_of_others_are_not_touched() {
    testing::in_namespace(async |netlink, host| {
        make_bridge(&netlink).await;
        let ns = NetNs::create().unwrap();
        netlink.add_bridge("weftpl1").await.unwrap();
        let error = attach(&ns, &spec(1, &["10.32.0.1/12"])).await.unwrap_err();
        assert!(matches!(error, AttachError::HostNameTaken(_)), "{error}");
        for foreign in ["bridge", "veth"] {
            let made = with_netlink(&ns, async move |_, there| match foreign {
                "bridge" => there.add_bridge("ethwe").await,
                _ => there.add_veth("ethwe", "other").await,
            });
            made.await.unwrap().unwrap();
            let error = attach(&ns, &spec(2, &["10.32.0.1/12"])).await.unwrap_err();
            assert!(matches!(error, AttachError::Foreign { .. }), "{error}");
            // As a caller does to undo a failed attach.
            assert_eq!(detach(&ns, "ethwe", None).await.unwrap(), []);
            assert_eq!(inspect(&ns, "ethwe").await.unwrap().len(), 1);
            with_netlink(&ns, async |_, there| there.del_link("ethwe").await)
                .await
                .unwrap()
                .unwrap();
        }
        let error = attach(&host, &spec(2, &["10.32.0.1/12"]))
            .await
            .unwrap_err();
        assert!(matches!(error, AttachError::HostNetwork), "{error}");
    });
}

#[test]
fn a_container_whose_bridge_went_away_is_plugged_in_again() {
    testing::in_namespace(async |netlink, _| {
        make_bridge(&netlink).await;
        let ns = NetNs::create().unwrap();
        let first = attach(&ns, &spec(1, &["10.32.0.1/12"])).await.unwrap();
        netlink.del_link("weft").await.unwrap();
        make_bridge(&netlink).await;
        assert_eq!(
            attach(&ns, &spec(1, &["10.32.0.1/12"])).await.unwrap(),
            first
        );
        let port = netlink.link("weftpl1").await.unwrap();
        assert_eq!(
            master_of(&port),
            Some(netlink.link_index("weft").await.unwrap())
        );
    });
}

#[test]
fn neighbours_that_knew_the_address_before_are_told() {
    testing::in_namespace(async |netlink, _| {
        make_bridge(&netlink).await;
        let watcher = NetNs::create().unwrap();
        attach(&watcher, &spec(1, &["10.32.0.1/12", "fd00::1/64"]))
            .await
            .unwrap();
        let mut buf = [0; 64];
        for number in 2..5 {
            // Each comes with the addresses of the one before and a MAC of its own.
            let ns = NetNs::create().unwrap();
            attach(&ns, &spec(number, &["10.32.0.2/12", "fd00::2/64"]))
                .await
                .unwrap();
            for (from, to) in [
                ("10.32.0.1:0", "10.32.0.2:7000"),
                ("[fd00::1]:0", "[fd00::2]:7000"),
            ] {
                let (client, server) = (udp_in(&watcher, from), udp_in(&ns, to));
                client.send_to(b"you", to).unwrap();
                server.recv(&mut buf).unwrap();
            }
            detach(&ns, "ethwe", None).await.unwrap();
        }
    });
}

#[test]
fn where_ipv6_is_switched_off_it_is_switched_on_at_the_interface_that_needs_it() {
    testing::in_namespace(async |netlink, _| {
        make_bridge(&netlink).await;
        let ns = NetNs::create().unwrap();
        let is_off = |of: &'static str| {
            let path = format!("/proc/sys/net/ipv6/conf/{of}/disable_ipv6");
            run_in(&ns, move || fs::read_to_string(path).unwrap()).unwrap()
        };
        run_in(&ns, || {
            for of in ["all", "default"] {
                let path = format!("/proc/sys/net/ipv6/conf/{of}/disable_ipv6");
                fs::write(path, "1").unwrap();
            }
        })
        .unwrap();
        attach(&ns, &spec(1, &["10.32.0.1/12"])).await.unwrap();
        assert_eq!(is_off("ethwe").trim(), "1");
        attach(&ns, &spec(1, &["fd00::1/64"])).await.unwrap();
        let views = inspect(&ns, "ethwe").await.unwrap();
        let expected = [cidr("10.32.0.1/12"), cidr("fd00::1/64")];
        assert_eq!(views[0].addresses, expected);
        assert_eq!((is_off("ethwe").trim(), is_off("lo").trim()), ("0", "1"));
    });
}

#[test]
fn an_attach_given_up_is_undone_by_detach() {
    testing::in_namespace(async |netlink, _| {
        make_bridge(&netlink).await;
        for micros in (0..8000).step_by(200) {
            let ns = NetNs::create().unwrap();
            let wanted = spec(1, &["10.32.0.1/12", "10.32.0.2/12"]);
            let begun = attach(&ns, &wanted);
            let _ = tokio::time::timeout(Duration::from_micros(micros), begun).await;
            detach(&ns, "ethwe", Some(&wanted.addresses)).await.unwrap();
            assert_eq!(
                netlink.list_links("weftpl").await.unwrap(),
                Vec::<String>::new(),
                "{micros}"
            );
        }
    });
}

/// The kernel hands over TCP's super-frames whole, checksums left undone, and takes them back like that.
#[test]
fn super_frames_cross_whole() {
    testing::in_namespace(async |netlink, _| {
        make_bridge(&netlink).await;
        let far = NetNs::create().unwrap();
        // Two bridges with a TAP each stand for two hosts; a thread each way for the routers.
        let (near_tap, far_tap) = (
            Tap::attach("weft-tap").unwrap(),
            run_in(&far, || Tap::attach("weft-tap")).unwrap().unwrap(),
        );
        enslave_tap(&netlink, "weft-tap", "weft").await.unwrap();
        let (one, other) = (NetNs::create().unwrap(), NetNs::create().unwrap());
        attach(&one, &spec(1, &["10.32.0.1/12"])).await.unwrap();
        let there = other.try_clone().unwrap();
        run_in(&far, || {
            testing::runtime().block_on(async {
                let netlink = Netlink::new().unwrap();
                make_bridge(&netlink).await;
                enslave_tap(&netlink, "weft-tap", "weft").await.unwrap();
                attach(&there, &spec(2, &["10.32.0.2/12"])).await.unwrap();
            });
        })
        .unwrap();
        wait_until_forwarding(&netlink, "weft-tap").await;
        let listener = run_in(&other, || TcpListener::bind("10.32.0.2:7000"))
            .unwrap()
            .unwrap();
        let done = AtomicBool::new(false);
        let frames = thread::scope(|scope| {
            let forth = scope.spawn(|| pass_on(&near_tap, &far_tap, &done));
            let back = scope.spawn(|| pass_on(&far_tap, &near_tap, &done));
            let received = scope.spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(DEADLINE).unwrap();
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).unwrap();
                bytes
            });
            let sent: Vec<u8> = (0..2_000_000_u32).map(|n| (n * 7 / 3) as u8).collect();
            let mut stream = run_in(&one, || TcpStream::connect("10.32.0.2:7000"))
                .unwrap()
                .unwrap();
            stream.write_all(&sent).unwrap();
            drop(stream);
            assert!(received.join().unwrap() == sent);
            done.store(true, Ordering::Relaxed);
            back.join().unwrap();
            forth.join().unwrap()
        });
        assert!(frames < 2_000_000 / 1376, "{frames}");
    });
}

/// Passes frames on until it is done, as they are; answers how many IPv4 ones there were.
fn pass_on(from: &Tap, to: &Tap, done: &AtomicBool) -> usize {
    let mut frames = 0;
    let mut buf = vec![0; 70_000];
    while !done.load(Ordering::Relaxed) {
        let Some(len) = from.recv_now(&mut buf).unwrap() else {
            thread::yield_now();
            continue;
        };
        let (header, frame) = buf[..len].split_first_chunk().unwrap();
        if frame[12..14] == [8, 0] {
            frames += 1;
        }
        to.send(header, frame).unwrap();
    }
    frames
}

#[test]
fn nothing_in_the_host_answers_for_a_port() {
    testing::in_namespace(async |netlink, _| {
        make_bridge(&netlink).await;
        let ns = NetNs::create().unwrap();
        attach(&ns, &spec(1, &["10.32.0.1/12"])).await.unwrap();
        // An address of its own would show here, and with it the host would speak on the network.
        let addresses = fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
        assert!(!addresses.contains("weft"), "{addresses}");
    });
}
