//! Many seeds at once, and what came of them, counted.
//!
//! `cargo xtask sim` and the test here run the same; a run that fails says how to have it again.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use weft_router::drop_reason::DropReason;

use crate::broken::{Broken, story};
use crate::world::World;

/// What many runs came to.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) seeds: u64,
    pub(crate) checks: u64,
    pub(crate) virtual_time: Duration,
    /// Faults, and how often each kind was made.
    pub(crate) faults: BTreeMap<&'static str, u64>,
    /// What is not a fault but what the runs are about too.
    pub(crate) sights: BTreeMap<&'static str, u64>,
    /// Seeds that failed, and why.
    pub(crate) failures: Vec<(u64, String)>,
}

/// Runs these seeds on all processors.
pub(crate) fn run_seeds(seeds: std::ops::Range<u64>, broken: Broken) -> Tally {
    let next = AtomicU64::new(seeds.start);
    let tally = Mutex::new(Tally::default());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let result = outcome(|| story(seed, broken));
                    let mut tally = tally.lock().unwrap();
                    tally.seeds += 1;
                    match result {
                        Ok(world) => tally.add(&world),
                        Err(why) => tally.failures.push((seed, why)),
                    }
                }
            });
        }
    });
    let mut tally = tally.into_inner().unwrap();
    tally.failures.sort();
    tally
}

/// What a run found wrong, in words.
pub(crate) fn outcome<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        text.unwrap_or_else(|| "a panic without words".to_owned())
    })
}

impl Tally {
    fn add(&mut self, world: &World) {
        self.checks += world.model.checks.get();
        self.virtual_time += world.now - world.start;
        for (kind, times) in &world.faults {
            *self.faults.entry(kind).or_default() += times;
        }
        let replayed = world.model.drops.get(&DropReason::Replayed.index());
        for (kind, times) in [
            ("addresses lost to another ring", world.model.conflicts),
            ("addresses taken over", world.model.taken_over),
            ("addresses taken from the dead", world.model.reclaimed),
            ("frames relayed", world.model.relayed),
            (
                "packets refused as replayed",
                replayed.copied().unwrap_or(0),
            ),
        ] {
            *self.sights.entry(kind).or_default() += times;
        }
    }

    pub(crate) fn fault_count(&self) -> u64 {
        self.faults.values().sum()
    }

    /// A kind of fault, or a thing to see, that there was none of. A few seeds may lack some.
    pub(crate) fn lack(&self) -> Option<&'static str> {
        let all = FAULTS.iter().chain(self.sights.keys());
        let times = |kind| self.faults.get(kind).or_else(|| self.sights.get(kind));
        all.copied()
            .find(|kind| times(*kind).is_none_or(|times| *times == 0))
    }
}

/// Every kind of fault that [`World::fault`] is told of.
pub(crate) const FAULTS: &[&str] = &[
    "cloned",
    "connection broken",
    "cut at a bad moment",
    "cut both ways",
    "cut off for long",
    "cut one way",
    "datagram lost",
    "datagram repeated",
    "datagrams cut one way",
    "dial failed",
    "died",
    "disk lost",
    "electors restarted",
    "killed",
    "killed before an effect",
    "left and came back",
    "message lost",
    "old disk put back",
    "partition",
    "power lost",
    "restarted",
    "stopped",
    "wave of joins",
    "wave of leaves",
    "write lost",
    "wrong clock",
];

#[test]
fn whatever_happens_all_comes_right_in_the_end() {
    let seeds = number("WEFT_SEEDS").unwrap_or(6);
    let tally = run_seeds(0..seeds, Broken::Nothing);
    let lines: Vec<_> = tally
        .failures
        .iter()
        .map(|(seed, why)| format!("seed {seed}: {why}"))
        .collect();
    assert!(
        lines.is_empty(),
        "{} of {seeds} seeds fail:\n{}",
        lines.len(),
        lines.join("\n")
    );
    assert!(tally.checks > 0 && tally.fault_count() > 0);
    assert_eq!(tally.lack().filter(|_| seeds >= 100), None);
}

#[test]
fn a_seed_replays_the_same_run() {
    use std::hash::Hasher;

    let once = || story(3, Broken::Nothing);
    let (first, second) = (once(), once());
    assert_eq!(first.events, second.events, "nothing but the seed decides");
    assert_eq!(first.trace.finish(), second.trace.finish());
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}
