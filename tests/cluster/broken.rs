//! The checker is checked: a cluster with one thing wrong in it must be found out.

use weft_router::drop_reason::DropReason;

use crate::chaos::{chaos, outcome};
use crate::peer::Settings;
use crate::world::World;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    Nothing,
    /// Frames flow before rings are compared.
    NoBarrier,
    /// Floods are not remembered.
    NoSeen,
    /// What the allocator wants kept is not.
    ForgetfulDisk,
    /// Containers that lost their address go on speaking from it.
    LoudConflicts,
    /// Names that are withdrawn stay.
    StickyNames,
}

#[test]
fn frames_before_the_barrier_are_found_out() {
    is_found_out(Broken::NoBarrier, meeting, &["is used by", "speak from"]);
}

#[test]
fn a_flood_delivered_twice_is_found_out() {
    is_found_out(Broken::NoSeen, flapping, &["delivered a frame twice"]);
}

#[test]
fn an_answer_that_is_not_on_the_disk_is_found_out() {
    is_found_out(Broken::ForgetfulDisk, chaos, &["has lost", "is used by"]);
}

#[test]
fn a_loser_of_its_address_that_still_speaks_is_found_out() {
    is_found_out(Broken::LoudConflicts, meeting, &["speak from"]);
}

#[test]
fn a_name_that_stays_is_found_out() {
    is_found_out(Broken::StickyNames, chaos, &["has names"]);
}

/// Two who made a ring alone meet; their containers have the same addresses.
fn meeting(seed: u64, broken: Broken) -> World {
    let mut world = World::of(seed, 2);
    world.net.weather.delay_ms = 200;
    world.model.strict = true;
    if broken != Broken::LoudConflicts {
        world.net.weather.message_loss = 400;
    }
    world.broken = broken;
    for n in [0, 1, 0, 1] {
        world.launch(n);
    }
    world.run_secs(1);
    world.connect(1, 0);
    for _ in 0..400 {
        world.run_ms(10);
        for c in 0..4 {
            world.send_frame(c, None);
        }
    }
    world
}

/// Connections come and go while everybody floods, so that views of the topology differ.
fn flapping(seed: u64, broken: Broken) -> World {
    let mut world = World::new(seed);
    world.broken = broken;
    world.net.weather.delay_ms = 60;
    for n in 0..7 {
        let mut settings = Settings::new(n);
        settings.discovery = false;
        settings.targets = [n + 1, n + 3].map(|to| to % 7).to_vec();
        world.add(settings);
    }
    world.run_secs(3);
    let containers: Vec<_> = (0..7).map(|n| world.launch(n)).collect();
    world.run_secs(5);
    for _ in 0..40 {
        world.break_a_pipe();
        for _ in 0..10 {
            world.run_ms(20);
            for c in &containers {
                world.send_frame(*c, None);
            }
        }
    }
    world
}

#[test]
fn with_nothing_wrong_nothing_is_found() {
    let mut duplicates = 0;
    for seed in 0..10 {
        meeting(seed, Broken::Nothing);
        let drops = flapping(seed, Broken::Nothing).model.drops;
        duplicates += drops.get(&DropReason::DuplicateFlood.index()).unwrap_or(&0);
    }
    assert!(duplicates > 0, "no flood came twice anywhere");
}

fn is_found_out(broken: Broken, run: fn(u64, Broken) -> World, words: &[&str]) {
    let found = (0..30).find_map(|seed| outcome(|| run(seed, broken)).err());
    let found = found.unwrap_or_else(|| panic!("{broken:?} was not noticed"));
    assert!(
        words.iter().any(|word| found.contains(word)),
        "{broken:?} was noticed as something else: {found}"
    );
}
