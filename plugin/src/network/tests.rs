//! Calls as dockerd was seen to make them, in the order it makes them, again, and in other orders.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::time::timeout;
use weft_api::ContainerId;
use weft_net::Netlink;
use weft_wire::NetworkKey;

use super::upkeep::look;
use super::*;
use crate::testing::{FakeRouter, cidr, on_a_host};

const NETWORK: &str = "e4cd3d1a4c3be4cd3d1a4c3be4cd3d1a4c3be4cd3d1a4c3be4cd3d1a4c3be4cd";
const ENDPOINT: &str = "cb91aa3708f1cb91aa3708f1cb91aa3708f1cb91aa3708f1cb91aa3708f1cb91";

/// dockerd, as far as a plugin knows it.
struct Dockerd(Plugin);

impl Dockerd {
    /// It has made one network some time before.
    fn of(router: &FakeRouter) -> Self {
        Self::made(router, Role::Host)
    }

    /// On a node of a swarm.
    fn of_swarm(router: &FakeRouter) -> Self {
        Self::made(router, Role::Swarm)
    }

    fn made(router: &FakeRouter, role: Role) -> Self {
        let user = super::options::user(NETWORK, role).unwrap();
        let made = ((user, NetworkKey::Default), true);
        router.books().users.extend([made]);
        Self(Plugin::new(router.client.clone(), role))
    }

    async fn call(&self, call: &str, body: Value) -> Value {
        let (path, body) = (format!("/{call}"), body.to_string());
        let answer = self.0.answer(&path, body.as_bytes()).await;
        serde_json::from_slice(&answer.body).unwrap()
    }

    /// A call that must succeed.
    async fn ok(&self, call: &str, body: Value) -> Value {
        let answer = self.call(call, body).await;
        assert!(answer.get("Err").is_none(), "{call}: {answer}");
        answer
    }

    /// Why a call is refused, which stands where drivers of either kind have it.
    async fn refused(&self, call: &str, body: Value) -> String {
        let answer = self.call(call, body).await;
        assert_eq!(answer["Err"], answer["Error"], "{call}: {answer}");
        answer["Err"].as_str().unwrap().to_owned()
    }

    /// The id of a pool.
    async fn pool(&self, pool: &str, range: &str) -> String {
        self.pool_in("weftlocal", pool, range).await
    }

    async fn pool_in(&self, space: &str, pool: &str, range: &str) -> String {
        let body = json!({ "AddressSpace": space, "Pool": pool, "SubPool": range,
            "Options": {}, "V6": pool.contains(':') });
        let answer = self.ok("IpamDriver.RequestPool", body).await;
        answer["PoolID"].as_str().unwrap().to_owned()
    }

    async fn address(&self, pool: &str, address: &str) -> String {
        let body = json!({ "PoolID": pool, "Address": address, "Options": null });
        let answer = self.ok("IpamDriver.RequestAddress", body).await;
        answer["Address"].as_str().unwrap().to_owned()
    }

    /// Makes a network as `docker network create -d weft --ipam-driver weft` does; its pool's id.
    async fn network(&self) -> String {
        let pool = self.pool("", "").await;
        self.ok("IpamDriver.RequestAddress", gateway(&pool, ""))
            .await;
        self.ok("NetworkDriver.CreateNetwork", network()).await;
        pool
    }

    async fn endpoint(&self, address: &str) -> Value {
        let interface = json!({ "Address": address, "AddressIPv6": "", "MacAddress": "" });
        let body = json!({ "NetworkID": NETWORK, "EndpointID": ENDPOINT, "Interface": interface,
            "Options": { "com.docker.network.portmap": [] } });
        self.ok("NetworkDriver.CreateEndpoint", body).await
    }
}

fn gateway(pool: &str, address: &str) -> Value {
    json!({ "PoolID": pool, "Address": address,
        "Options": { "RequestAddressType": "com.docker.network.gateway" } })
}

fn network() -> Value {
    let data =
        json!({ "AddressSpace": "weftlocal", "Gateway": "10.32.0.0/16", "Pool": "10.32.0.0/16" });
    json!({ "NetworkID": NETWORK, "IPv4Data": [data], "IPv6Data": [], "Options": {
        "com.docker.network.enable_ipv6": false, "com.docker.network.generic": {} } })
}

fn join() -> Value {
    json!({ "NetworkID": NETWORK, "EndpointID": ENDPOINT,
        "SandboxKey": "/var/run/docker/netns/cefaecdd5e1a", "Options": {} })
}

fn released(pool: &str, address: &str) -> Value {
    json!({ "PoolID": pool, "Address": address })
}

/// The links a container's interface is made of.
async fn ends() -> Vec<String> {
    Netlink::new().unwrap().list_links("weftp").await.unwrap()
}

#[tokio::test]
async fn dockerd_is_told_what_the_plugin_is() {
    let dockerd = Dockerd::of(&FakeRouter::start());
    for (call, field) in [
        ("Plugin.Activate", "Implements"),
        ("NetworkDriver.GetCapabilities", "Scope"),
        ("IpamDriver.GetCapabilities", "RequiresRequestReplay"),
        (
            "IpamDriver.GetDefaultAddressSpaces",
            "LocalDefaultAddressSpace",
        ),
    ] {
        // These come without a body.
        let answer = dockerd.0.answer(&format!("/{call}"), b"").await;
        let value: Value = serde_json::from_slice(&answer.body).unwrap();
        assert!(
            answer.status == 200 && value.get(field).is_some(),
            "{call}: {value}"
        );
    }
    let unknown = dockerd.0.answer("/NetworkDriver.Dance", b"{}").await;
    assert_eq!(unknown.status, 404);
}

#[test]
fn a_container_gets_an_interface_an_address_and_the_way_to_names() {
    on_a_host(|| async {
        let router = FakeRouter::start();
        let dockerd = Dockerd::of(&router);
        let pool = dockerd.network().await;
        assert_eq!(router.held(), [], "making a network asks for no address");

        let address = dockerd.address(&pool, "").await;
        assert_eq!(router.held(), [cidr(&address)]);
        let made = dockerd.endpoint(&address).await;
        assert_eq!(made["Interface"]["MacAddress"], "02:57:0a:20:00:01");
        let [binding] = &router.bindings()[..] else {
            panic!("{:?}", router.bindings());
        };
        assert_eq!(binding.mac.to_string(), "02:57:0a:20:00:01");
        assert_eq!(binding.addresses, [cidr(&address).addr()]);
        assert_eq!(binding.port, "weftplcb91aa370");
        let joined = dockerd.ok("NetworkDriver.Join", join()).await;
        assert_eq!(
            joined["InterfaceName"],
            json!({ "SrcName": "weftpgcb91aa370", "DstPrefix": "ethwe" })
        );
        assert_eq!(
            joined["StaticRoutes"][1],
            json!({
            "Destination": "169.254.67.83/32", "RouteType": 1, "NextHop": "" })
        );
        assert_eq!(joined.get("Gateway"), None, "the gateway is Docker's own");
        assert_eq!(ends().await, ["weftpgcb91aa370", "weftplcb91aa370"]);

        dockerd.ok("NetworkDriver.Leave", join()).await;
        dockerd.ok("NetworkDriver.DeleteEndpoint", join()).await;
        dockerd
            .ok("IpamDriver.ReleaseAddress", released(&pool, "10.32.0.1"))
            .await;
        assert_eq!((router.held(), ends().await), (vec![], vec![]));
        assert_eq!(router.bindings(), []);
        dockerd
            .ok("IpamDriver.ReleaseAddress", released(&pool, "10.32.0.0"))
            .await;
        dockerd
            .ok("IpamDriver.ReleasePool", json!({ "PoolID": pool }))
            .await;
        dockerd
            .ok(
                "NetworkDriver.DeleteNetwork",
                json!({ "NetworkID": NETWORK }),
            )
            .await;
    });
}

#[test]
fn calls_may_come_twice_and_to_a_plugin_that_was_started_anew() {
    on_a_host(|| async {
        let router = FakeRouter::start();
        let pool = Dockerd::of(&router).network().await;
        let address = Dockerd::of(&router).address(&pool, "").await;
        for _ in 0..2 {
            let dockerd = Dockerd::of(&router);
            dockerd.ok("NetworkDriver.CreateNetwork", network()).await;
            dockerd.endpoint(&address).await;
            dockerd.ok("NetworkDriver.Join", join()).await;
            assert_eq!(ends().await.len(), 2);
        }
        for _ in 0..2 {
            // After a crash dockerd gives back what it remembers; there need not be a Leave.
            let dockerd = Dockerd::of(&router);
            dockerd.ok("NetworkDriver.DeleteEndpoint", join()).await;
            dockerd.ok("NetworkDriver.Leave", join()).await;
            dockerd
                .ok("IpamDriver.ReleaseAddress", released(&pool, "10.32.0.1"))
                .await;
            dockerd
                .ok(
                    "NetworkDriver.DeleteNetwork",
                    json!({ "NetworkID": NETWORK }),
                )
                .await;
            assert_eq!((router.held(), ends().await), (vec![], vec![]));
        }
    });
}

#[test]
fn what_cannot_be_put_right_is_refused_with_its_reason() {
    on_a_host(|| async {
        let router = FakeRouter::start();
        let dockerd = Dockerd::of(&router);
        let said = dockerd.refused("NetworkDriver.Join", join()).await;
        assert!(
            said.contains("there is no interface for the endpoint"),
            "{said}"
        );
        router.books().network.bridge = "other".to_owned();
        let endpoint = json!({ "NetworkID": NETWORK, "EndpointID": ENDPOINT, "Interface": null });
        let said = dockerd
            .refused("NetworkDriver.CreateEndpoint", endpoint)
            .await;
        assert!(said.contains("no bridge other"), "{said}");
        for id in ["", "../../etc", "a b"] {
            let body = json!({ "NetworkID": NETWORK, "EndpointID": id });
            let said = dockerd.refused("NetworkDriver.Join", body).await;
            assert!(said.contains("cannot be the id of an endpoint"), "{said}");
        }
        assert_eq!(ends().await, [""; 0]);
    });
}

#[test]
fn a_network_is_the_one_its_options_and_subnet_say() {
    on_a_host(|| async {
        let links = Netlink::new().unwrap();
        links.add_bridge("weft-other").await.unwrap();
        for (subnet, options, key) in [
            ("10.50.0.0/16", json!({}), "subnet:10.50.0.0/16"),
            (
                "10.50.0.0/16",
                json!({ "weft.network": "blue" }),
                "name:blue",
            ),
            (
                "10.32.0.0/16",
                json!({ "com.docker.network.driver.mtu": "1376" }),
                "default",
            ),
        ] {
            let router = FakeRouter::start();
            let dockerd = Dockerd::of(&router);
            router.books().users.clear();
            let pool = dockerd.pool(subnet, "").await;
            let mut made = network();
            made["IPv4Data"][0]["Pool"] = subnet.into();
            made["Options"]["com.docker.network.generic"] = options;
            dockerd.ok("NetworkDriver.CreateNetwork", made).await;
            let keys: Vec<_> = router
                .books()
                .users
                .keys()
                .map(|(_, key)| key.to_string())
                .collect();
            assert_eq!(keys, [key]);
            dockerd.endpoint(&dockerd.address(&pool, "").await).await;
            assert_eq!(router.books().pools, [cidr(subnet)]);
            let other = if key == "default" {
                "weft"
            } else {
                "weft-other"
            };
            let ports = links.list_ports(other).await.unwrap();
            assert!(ports.contains("weftplcb91aa370"), "{ports:?}");
            dockerd.ok("NetworkDriver.DeleteEndpoint", join()).await;
            dockerd.ok("NetworkDriver.DeleteNetwork", join()).await;
            assert!(router.books().users.is_empty());
            // It must not come up on another network.
            let said = dockerd.refused("NetworkDriver.Join", join()).await;
            assert!(
                said.contains("no interface") || said.contains("does not know"),
                "{said}"
            );
        }
    });
}

#[tokio::test]
async fn options_that_cannot_be_met_are_refused_and_multicast_may_be_left_out() {
    let router = FakeRouter::start();
    let dockerd = Dockerd::of(&router);
    for (options, why) in [
        (
            json!({ "com.docker.network.driver.mtu": "9000" }),
            "--mtu 9000",
        ),
        (json!({ "weft.colour": "blue" }), "weft.colour"),
        (json!({ "weft.network": "a b" }), "cannot be the name"),
    ] {
        let mut made = network();
        made["Options"]["com.docker.network.generic"] = options;
        let said = dockerd.refused("NetworkDriver.CreateNetwork", made).await;
        assert!(said.contains(why), "{said}");
    }
    let mut made = network();
    made["Options"]["com.docker.network.generic"] = json!({ "weft.multicast": "false" });
    dockerd.ok("NetworkDriver.CreateNetwork", made).await;
    assert_eq!(router.books().users.values().collect::<Vec<_>>(), [&false]);
}

#[tokio::test]
async fn an_address_that_was_chosen_is_had_once() {
    let router = FakeRouter::start();
    let dockerd = Dockerd::of(&router);
    let pool = dockerd.network().await;
    assert_eq!(dockerd.address(&pool, "10.32.7.7").await, "10.32.7.7/16");
    let again = released(&pool, "10.32.7.7");
    let said = dockerd
        .refused("IpamDriver.RequestAddress", again.clone())
        .await;
    assert_eq!(said, "weft: another container has it");
    dockerd.ok("IpamDriver.ReleaseAddress", again).await;
    assert_eq!(dockerd.address(&pool, "10.32.7.7").await, "10.32.7.7/16");
    let outside = released(&pool, "10.33.0.1");
    let said = dockerd.refused("IpamDriver.RequestAddress", outside).await;
    assert_eq!(
        said,
        "weft: 10.33.0.1 is not in the network's subnet 10.32.0.0/16"
    );
}

#[tokio::test]
async fn addresses_set_aside_on_one_host_may_be_set_aside_on_the_next() {
    let router = FakeRouter::start();
    let (one, other) = (Dockerd::of(&router), Dockerd::of(&router));
    for dockerd in [&one, &other] {
        let pool = dockerd.pool("10.32.0.0/16", "10.32.4.0/24").await;
        let chosen = gateway(&pool, "10.32.255.254");
        dockerd.ok("IpamDriver.RequestAddress", chosen).await;
        assert_eq!(dockerd.address(&pool, "10.32.9.9").await, "10.32.9.9/16");
        dockerd.ok("NetworkDriver.CreateNetwork", network()).await;
        // From here on it would be a container's.
        let said = dockerd.refused("IpamDriver.RequestAddress", released(&pool, "10.32.9.9"));
        assert_eq!(said.await, "weft: another container has it");
        assert!(dockerd.address(&pool, "").await.starts_with("10.32.4."));
    }
}

#[tokio::test]
async fn ipv6_addresses_are_held_like_others() {
    let router = FakeRouter::start();
    let dockerd = Dockerd::of(&router);
    let pool = dockerd.pool("fd57:1::/64", "fd57:1::8000:0:0:0/66").await;
    let given = dockerd.address(&pool, "").await;
    assert_eq!(given, "fd57:1::8000:0:0:1/64");
    dockerd.ok("NetworkDriver.CreateNetwork", network()).await;
    assert_eq!(dockerd.address(&pool, "fd57:1::7").await, "fd57:1::7/64");
    let held = || router.held().len();
    assert_eq!(held(), 2);
    for addr in ["fd57:1::7", "fd57:1::8000:0:0:1", "fd57:1::"] {
        dockerd
            .ok("IpamDriver.ReleaseAddress", released(&pool, addr))
            .await;
    }
    assert_eq!(held(), 0);
}

#[tokio::test]
async fn an_ipv6_network_without_a_subnet_has_the_routers_if_there_is_one() {
    let router = FakeRouter::start();
    let dockerd = Dockerd::of(&router);
    let body = || json!({ "AddressSpace": "weftlocal", "V6": true });
    let said = dockerd.refused("IpamDriver.RequestPool", body()).await;
    assert!(said.contains("--ipalloc-range"), "{said}");
    router.books().network.default_subnet6 = Some(cidr("fd57:1::/64"));
    let made = dockerd.ok("IpamDriver.RequestPool", body()).await;
    assert_eq!(made["Pool"], "fd57:1::/64");
}

#[tokio::test]
async fn a_network_with_dockers_own_addresses_is_refused() {
    let router = FakeRouter::start();
    let dockerd = Dockerd::of(&router);
    let data = json!({ "AddressSpace": "LocalDefault", "Pool": "172.19.0.0/16" });
    let body = json!({ "NetworkID": NETWORK, "IPv4Data": [data] });
    let said = dockerd.refused("NetworkDriver.CreateNetwork", body).await;
    assert!(said.contains("--ipam-driver weft"), "{said}");
}

#[tokio::test]
async fn without_a_router_the_reason_is_said_and_what_needs_none_is_done() {
    let folder = TempDir::new().unwrap();
    let client = Client::new(folder.path().join("weft.sock"));
    let dockerd = Dockerd(Plugin::new(client, Role::Host));
    let pool = dockerd.pool("10.32.0.0/16", "").await;
    dockerd
        .ok("IpamDriver.RequestAddress", gateway(&pool, ""))
        .await;
    let said = dockerd
        .refused("IpamDriver.RequestAddress", released(&pool, ""))
        .await;
    assert!(said.contains("start it with `weft launch`"), "{said}");
}

#[tokio::test]
async fn a_router_that_hangs_never_hangs_dockerd() {
    let folder = TempDir::new().unwrap();
    let socket = folder.path().join("weft.sock");
    let _mute = UnixListener::bind(&socket).unwrap();
    let patience = Duration::from_millis(400);
    let dockerd = || {
        let client = Client::new(&socket);
        Dockerd(Plugin::with_patience(client, Role::Host, patience))
    };
    let pool = "weftlocal-10.32.0.0/16-10.32.0.0/16-00000001";
    for (call, body, why) in [
        (
            "IpamDriver.RequestPool",
            json!({ "AddressSpace": "weftlocal" }),
            "took longer",
        ),
        (
            "IpamDriver.RequestAddress",
            released(pool, ""),
            "weft status ipam",
        ),
        (
            "IpamDriver.RequestAddress",
            released(pool, "10.32.0.9"),
            "took longer",
        ),
        (
            "IpamDriver.ReleaseAddress",
            released(pool, "10.32.0.9"),
            "took longer",
        ),
        ("NetworkDriver.CreateNetwork", network(), "took longer"),
        ("NetworkDriver.CreateEndpoint", join(), "took longer"),
    ] {
        let said = timeout(Duration::from_secs(3), dockerd().refused(call, body)).await;
        let said = said.unwrap_or_else(|_| panic!("{call} hangs"));
        assert!(said.contains(why), "{call}: {said}");
    }
    // The calls that follow do not wait as long again.
    let dockerd = dockerd();
    dockerd
        .refused("IpamDriver.RequestAddress", released(pool, ""))
        .await;
    let said = dockerd
        .refused("NetworkDriver.CreateNetwork", network())
        .await;
    assert!(said.contains("does not answer, in 80ms"), "{said}");
    dockerd.ok("NetworkDriver.DeleteEndpoint", join()).await;
    dockerd
        .ok("IpamDriver.RequestAddress", gateway(pool, ""))
        .await;
}

#[tokio::test]
async fn a_router_that_answers_again_is_asked_as_before() {
    let router = FakeRouter::start();
    let dockerd = Dockerd::of(&router);
    dockerd.0.silent.store(true, Ordering::Relaxed);
    dockerd.network().await;
    assert!(!dockerd.0.silent.load(Ordering::Relaxed));
}

#[tokio::test]
async fn what_a_swarms_manager_was_given_is_the_nodes_and_the_next_managers_too() {
    let router = FakeRouter::start();
    let (manager, node) = (Dockerd::of_swarm(&router), Dockerd::of_swarm(&router));
    let global = manager.pool_in("weftglobal", "", "").await;
    let first = manager
        .ok("IpamDriver.RequestAddress", gateway(&global, ""))
        .await;
    let options = json!({ "NetworkID": NETWORK, "Options": { "weft.network": "n", "odd": 1 } });
    let allocated = manager.ok("NetworkDriver.AllocateNetwork", options).await;
    assert_eq!(allocated, json!({ "Options": { "weft.network": "n" } }));
    let task = manager.address(&global, "").await;
    let bare = task.split('/').next().unwrap();

    let local = node.pool("10.32.0.0/16", "").await;
    let bare_first = first["Address"].as_str().unwrap().split('/').next();
    let again = node
        .ok(
            "IpamDriver.RequestAddress",
            gateway(&local, bare_first.unwrap()),
        )
        .await;
    assert_eq!(again["Address"], first["Address"]);
    assert_eq!(node.address(&local, bare).await, task);
    assert_eq!(router.held(), [cidr(&task)]);
    // The manager that follows asks for what the one before holds.
    assert_eq!(manager.address(&global, bare).await, task);

    node.ok("IpamDriver.ReleaseAddress", released(&local, bare))
        .await;
    assert_eq!(router.held(), [cidr(&task)]);
    manager
        .ok("IpamDriver.ReleaseAddress", released(&global, bare))
        .await;
    manager
        .ok("NetworkDriver.FreeNetwork", json!({ "NetworkID": NETWORK }))
        .await;
    assert_eq!(router.held(), []);
}

#[tokio::test]
async fn only_a_swarms_plugin_says_that_its_networks_are_a_swarms() {
    let router = FakeRouter::start();
    let scope = async |dockerd: Dockerd| {
        let said = dockerd.ok("NetworkDriver.GetCapabilities", json!({})).await;
        said["Scope"].as_str().unwrap().to_owned()
    };
    assert_eq!(scope(Dockerd::of(&router)).await, "local");
    assert_eq!(scope(Dockerd::of_swarm(&router)).await, "global");
}

#[test]
fn an_address_a_task_has_elsewhere_is_not_left_over() {
    on_a_host(|| async {
        let router = FakeRouter::start();
        let manager = Dockerd::of_swarm(&router);
        let pool = manager.pool_in("weftglobal", "", "").await;
        let task = manager.address(&pool, "").await;
        let none = BTreeSet::new();
        assert_eq!(look(&router.client, &none).await.unwrap(), none);
        assert_eq!(router.held(), [cidr(&task)]);
    });
}

#[test]
fn an_address_without_an_interface_is_freed_at_the_second_look() {
    on_a_host(|| async {
        let router = FakeRouter::start();
        let dockerd = Dockerd::of(&router);
        let pool = dockerd.network().await;
        let used = dockerd.address(&pool, "").await;
        dockerd.endpoint(&used).await;
        let chosen = gateway(&pool, "10.32.255.254");
        dockerd.ok("IpamDriver.RequestAddress", chosen).await;
        let other = ContainerId::new("pid-7-7").unwrap();
        router
            .client
            .claim(&other, cidr("10.32.8.8/16"))
            .await
            .unwrap();

        let client = &router.client;
        let none = BTreeSet::new();
        assert_eq!(look(client, &none).await.unwrap(), none);
        let left = dockerd.address(&pool, "").await;
        let suspects = look(client, &none).await.unwrap();
        assert_eq!((suspects.len(), router.held().len()), (1, 4));
        assert_eq!(look(client, &suspects).await.unwrap(), none);
        assert_eq!(router.held().len(), 3);
        assert!(!router.held().contains(&cidr(&left)));
        assert!(router.held().contains(&cidr(&used)));
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_body_panics(call in 0_usize..6, body in "[{}\\[\\]\":,a-zA-Z0-9]{0,60}") {
        let calls = ["IpamDriver.RequestPool", "IpamDriver.RequestAddress", "IpamDriver.ReleaseAddress",
            "NetworkDriver.CreateNetwork", "NetworkDriver.CreateEndpoint", "NetworkDriver.Join"];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let plugin = Plugin::new(Client::new("/nonexistent/weft.sock"), Role::Host);
        let answer = runtime.block_on(plugin.answer(calls[call], body.as_bytes()));
        prop_assert_eq!(answer.status, 200);
        prop_assert!(serde_json::from_slice::<Value>(&answer.body).is_ok());
    }
}
