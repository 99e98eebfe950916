//! Who tells whom what is new, and how often it is told.

use std::time::Duration;

use super::switch::{Switch, link, name, record};
use crate::key::tests::info;
use crate::{Entry, Gossip};

#[test]
fn in_a_full_mesh_a_change_is_told_once_to_each() {
    let mut switch = Switch::mesh(8);
    switch.run_secs(10);
    for n in 1..=8 {
        assert_eq!(switch.known(n).len(), 7);
    }
    switch.assert_rest();
    switch.publish(1, &record("x", 1));
    for n in 2..=8 {
        switch.until(n, 1, &record("x", 1), true);
    }
    switch.run(Duration::from_millis(100));
    let (messages, _) = switch.take_traffic();
    // At one moment in five each tells two others what all it knows comes to.
    assert!(messages <= 7 + 16, "{messages} messages for one change");
}

#[test]
fn what_two_neighbours_told_parts_of_is_not_told_their_neighbours_again() {
    let mut switch = Switch::mesh(4);
    switch.rest_behind_a_tick();
    let now = std::time::Instant::now();
    let mut far = Gossip::new(name(5), 1, vec![Entry::Peer(info(5))], now).unwrap();
    let one = far.everything();
    far.publish(&record("x", 1), now).unwrap();
    let both = far.everything();
    switch.take_traffic();
    switch.forge(2, 1, &one);
    switch.forge(3, 1, &both);
    switch.run(Duration::from_millis(200));
    let (run, held) = (far.us, &switch.peer(1).gossip.store);
    assert_eq!(held.known(run), far.store.known(run));
    let (messages, _) = switch.take_traffic();
    assert_eq!(messages, 0, "the second and the third tell the fourth");
}

#[test]
fn three_of_those_between_two_tell_what_is_new_whoever_of_them_goes() {
    let mut switch = eight_between();
    let messages = tell_once(&mut switch);
    assert_eq!(messages, 8 + 3);
    for between in 2..=8 {
        switch.cut(between, 10);
        switch.run_secs(1);
        assert_told_soon(&mut switch, 1, 10, &record("y", between as u8));
    }
}

#[test]
fn three_tell_what_is_new_of_somebody_farther_away_too() {
    let mut switch = Switch::apart(10);
    switch.connect(1, 2);
    for between in 3..=9 {
        for other in [2, 10].into_iter().chain(between + 1..=9) {
            switch.connect(between, other);
        }
    }
    let messages = tell_once(&mut switch);
    assert!(
        messages < 1 + 7 + 7,
        "{messages}: not all tell the last one"
    );
}

/// Who has a connection with somebody tells it first, so that it need not wait for a hop more.
#[test]
fn those_that_hear_of_it_first_tell_it() {
    let mut switch = Switch::apart(20);
    switch.connect(1, 2);
    switch.connect(2, 20);
    for other in 3..=19 {
        switch.connect(2, other);
        switch.connect(other, 20);
    }
    switch.run_secs(10);
    let entry = record("x", 1);
    switch.publish(1, &entry);
    switch.until(3, 1, &entry, true);
    switch.run(Duration::from_millis(5));
    assert!(switch.knows(20, 1, &entry), "the second tells both at once");
}

/// One of the two may not know yet that the other does not hear it, and gossip may be as dead as the datagrams.
#[test]
fn those_whose_connection_carries_no_datagrams_are_told_of_each_other() {
    let mut switch = Switch::mesh(3);
    switch.rest_behind_a_tick();
    switch.cut_silently(1, 2);
    let entry = link(name(2), false);
    switch.publish(1, &entry);
    let took = switch.until(2, 1, &entry, true);
    assert!(took < Duration::from_millis(100), "{took:?}");
}

#[test]
fn who_has_a_connection_without_datagrams_does_not_count_among_those_that_tell() {
    let mut switch = eight_between();
    for between in 2..=8 {
        switch.cut_silently(between, 10);
        switch.publish(between, &link(name(10), false));
        switch.rest_behind_a_tick();
        assert_told_soon(&mut switch, 1, 10, &record("x", between as u8));
    }
}

#[test]
fn who_was_told_over_such_a_connection_is_told_again() {
    let mut switch = Switch::mesh(3);
    switch.start(4, 1, vec![]);
    switch.connect(1, 4);
    switch.run_secs(1);
    switch.cut_silently(1, 2);
    switch.publish(1, &link(name(2), false));
    switch.rest_behind_a_tick();
    assert_told_soon(&mut switch, 4, 2, &record("x", 1));
}

/// The first and the tenth of ten peers, with the other eight between them.
fn eight_between() -> Switch {
    let mut switch = Switch::apart(10);
    for between in 2..=9 {
        switch.connect(1, between);
        switch.connect(between, 10);
    }
    switch
}

/// Has a peer say something that another one hears of as fast as news goes, long before anybody compares.
fn assert_told_soon(switch: &mut Switch, from: u16, to: u16, entry: &Entry) {
    switch.publish(from, entry);
    let took = switch.until(to, from, entry, true);
    assert!(took < Duration::from_millis(200), "{took:?}");
}

/// Has the first peer say something, and counts how many messages it takes until the tenth knows it.
fn tell_once(switch: &mut Switch) -> usize {
    switch.rest_behind_a_tick();
    switch.take_traffic();
    switch.publish(1, &record("x", 1));
    switch.run(Duration::from_millis(200));
    assert!(switch.knows(10, 1, &record("x", 1)));
    let (messages, _) = switch.take_traffic();
    messages
}
