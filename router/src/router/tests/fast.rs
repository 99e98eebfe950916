//! Two routers whose kernels carry frames, or not.

use std::net::IpAddr;

use super::net::{Net, config};
use crate::{Carriage, Carrier, Config, Event, FastEvent};

fn trusting(n: u8) -> Config {
    Config {
        trusted: vec!["10.0.0.0/24".parse().unwrap()],
        ..config(n)
    }
}

fn net(configs: impl IntoIterator<Item = Config>) -> Net {
    let mut net = Net::new(configs);
    for n in 0..net.nodes.len() {
        net.nodes[n].router.set_fast(Ok(6784), net.now);
    }
    net
}

/// Two trusting nodes whose kernels carry their frames.
fn up() -> Net {
    let mut net = net([trusting(0), trusting(1)]);
    net.connect(0, "n1");
    net.run_secs(3);
    assert!(net.established(0, 1));
    assert!(by_kernel(&net, 0, 1) && by_kernel(&net, 1, 0));
    net
}

fn by_kernel(net: &Net, from: usize, to: usize) -> bool {
    let IpAddr::V4(addr) = net.nodes[to].addr.ip() else {
        return false;
    };
    let kernel = Carrier::Kernel { addr, port: 6784 };
    net.nodes[from].carriers.get(&net.nodes[to].name) == Some(&kernel)
}

fn carriage(net: &Net, n: usize) -> Carriage {
    net.statuses(n)[0].carriage.clone()
}

#[test]
fn kernels_carry_frames_between_trusting_peers_and_the_status_says_so() {
    let net = up();
    assert_eq!(
        (carriage(&net, 0), carriage(&net, 1)),
        (Carriage::Kernel, Carriage::Kernel)
    );
}

#[test]
fn trust_at_one_end_is_not_enough_and_both_show_it() {
    let mut net = net([trusting(0), config(1)]);
    net.connect(0, "n1");
    net.run_secs(10);
    assert!(net.established(0, 1));
    for (n, words) in [(0, "trusted by us only"), (1, "trusted by the peer only")] {
        let Carriage::Sealed(Some(why)) = carriage(&net, n) else {
            panic!("{:?}", carriage(&net, n));
        };
        assert!(why.starts_with(words), "{why}");
        assert!(net.nodes[n].admitted.is_empty());
    }
}

#[test]
fn without_trust_nothing_is_said_of_it() {
    let mut net = net([config(0), config(1)]);
    net.connect(0, "n1");
    net.run_secs(10);
    assert_eq!(carriage(&net, 0), Carriage::Sealed(None));
    assert!(net.nodes[0].admitted.is_empty());
}

#[test]
fn one_way_may_be_shut_and_the_other_not() {
    let mut net = up();
    net.vxlan_shut.insert(1);
    net.run_secs(5);
    assert!(!by_kernel(&net, 0, 1) && by_kernel(&net, 1, 0));
    net.vxlan_shut.clear();
    net.run_secs(10);
    assert!(by_kernel(&net, 0, 1) && by_kernel(&net, 1, 0));
    assert!(net.established(0, 1));
}

#[test]
fn who_cannot_keep_strangers_out_says_so_at_the_other_end() {
    let mut net = up();
    net.nodes[1]
        .router
        .set_fast(Err("no nft".to_owned()), net.now);
    net.work(1);
    net.run_secs(1);
    assert_eq!(
        carriage(&net, 0),
        Carriage::Sealed(Some("peer says: no nft".to_owned()))
    );
    assert_eq!(
        carriage(&net, 1),
        Carriage::Sealed(Some("no nft".to_owned()))
    );
    assert!(net.nodes[1].admitted.is_empty());
    net.nodes[1].router.set_fast(Ok(6784), net.now);
    net.work(1);
    net.run_secs(3);
    assert!(by_kernel(&net, 0, 1) && by_kernel(&net, 1, 0));
}

#[test]
fn a_router_that_dies_is_held_and_back_without_a_break() {
    let mut net = up();
    let (name, before) = (net.nodes[1].name, net.nodes[0].admitted.clone());
    net.nodes[1].alive = false;
    net.restart(1, trusting(1), false);
    net.run_secs(30);
    assert!(!net.nodes[0].router.connected().contains(&name));
    assert!(by_kernel(&net, 0, 1));
    assert_eq!(net.nodes[0].admitted, before);
    net.nodes[1].alive = true;
    net.nodes[1].router.set_fast(Ok(6784), net.now);
    net.connect(1, "n0");
    net.run_secs(15);
    assert!(net.established(0, 1));
    assert!(by_kernel(&net, 0, 1) && by_kernel(&net, 1, 0));
    let sealed = |event: &Event| {
        let carried = |carrier: &Carrier| *carrier == Carrier::Router;
        matches!(event, Event::Fast { event: FastEvent::Carry { carrier, .. }, .. } if carried(carrier))
    };
    assert_eq!(net.count(0, sealed), 0);
}

#[test]
fn a_router_that_stays_dead_is_given_up_after_a_minute() {
    let mut net = up();
    net.nodes[1].alive = false;
    net.restart(1, trusting(1), false);
    net.run_secs(61);
    assert!(!by_kernel(&net, 0, 1));
    assert!(net.nodes[0].admitted.is_empty());
}

#[test]
fn a_router_that_is_stopped_in_order_is_not_held() {
    let mut net = up();
    net.nodes[1].router.shutdown(net.now);
    net.work(1);
    net.run_secs(1);
    assert!(!by_kernel(&net, 0, 1));
    assert!(net.nodes[0].admitted.is_empty());
}
