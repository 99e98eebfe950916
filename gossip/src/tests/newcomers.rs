//! Who joins learns all that is said, however much that is.

use std::time::Duration;

use super::switch::{Switch, record};

/// Some twenty messages full of news: what two tell at the same time meets.
#[test]
fn a_newcomer_learns_all_from_two_without_waiting_for_a_tick() {
    let mut switch = Switch::apart(PEERS);
    for n in 1..=PEERS {
        for further in [1, 7] {
            switch.connect(n, 1 + (n - 1 + further) % PEERS);
        }
        for entry in 0..40 {
            switch.publish(n, &record(&format!("{entry}.{n:0>60}.{n:0>60}"), 1));
        }
    }
    switch.run_secs(30);
    for more in 0..8 {
        let newcomer = PEERS + 1 + more;
        switch.start(newcomer, 1, vec![]);
        let start = switch.now;
        switch.connect(newcomer, 1 + more * 5);
        switch.connect(newcomer, 90 + more * 3);
        let all = usize::from(newcomer - 1);
        while switch.known(newcomer).len() < all {
            switch.run(Duration::from_millis(10));
            let took = switch.now - start;
            assert!(took < Duration::from_millis(500), "newcomer {more}");
        }
        switch.run_secs(10);
    }
}

const PEERS: u16 = 120;
