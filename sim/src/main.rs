//! `cargo xtask sim`: the simulated cluster of `tests/cluster/`, over many seeds.
//!
//! The simulation is the one the tests have; it stands here once more as a program of its own so
//! that the command builds optimised, and builds the pure crates only. What a run is made of is told
//! in `tests/cluster.rs`, what can be switched off in `tests/cluster/broken.rs`.
//!
//! Invariants: the last line counts what was done; success means that every check held and that no
//! count is zero. With `--break` a run that fails is still a failure: it is what one wants to see.
#![forbid(unsafe_code)]
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "these are the modules of a test; some of it serves the single stories, which are not here"
)]

#[path = "../../tests/cluster/bounds.rs"]
mod bounds;
#[path = "../../tests/cluster/broken.rs"]
mod broken;
#[path = "../../tests/cluster/chaos.rs"]
mod chaos;
#[path = "../../tests/cluster/clock.rs"]
mod clock;
#[path = "../../tests/cluster/crossings.rs"]
mod crossings;
#[path = "../../tests/cluster/dataplane.rs"]
mod dataplane;
#[path = "../../tests/cluster/model.rs"]
mod model;
#[path = "../../tests/cluster/peer.rs"]
mod peer;
#[path = "../../tests/cluster/reclaim.rs"]
mod reclaim;
#[path = "../../tests/cluster/rulings.rs"]
mod rulings;
#[path = "../../tests/cluster/scale.rs"]
mod scale;
#[path = "../../tests/cluster/seeds.rs"]
mod seeds;
#[path = "../../tests/cluster/settled.rs"]
mod settled;
#[path = "../../tests/cluster/underlay.rs"]
mod underlay;
#[path = "../../tests/cluster/world.rs"]
mod world;

use std::ops::Range;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use broken::Broken;
use seeds::{Tally, run_seeds};

const USAGE: &str = "\
cargo xtask sim [--seeds N] [--from S] [--seed S] [--break RULE]

  --seeds N      run the seeds 0 to N-1 (1000 unless told otherwise)
  --from S       begin with this seed instead of 0
  --seed S       run this seed alone, as a failing one says
  --break RULE   switch a rule off: the runs must fail. RULE is one of
";

/// What is to be run.
struct Wish {
    seeds: Range<u64>,
    broken: Broken,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [first, counts @ ..] = args.as_slice()
        && first == "scale"
    {
        return measure_all(counts);
    }
    let wish = match parse(&args) {
        Ok(wish) => wish,
        Err(why) => {
            eprint!("{why}\n\n{USAGE}");
            for rule in Broken::ALL {
                eprintln!("    {:14} {}", rule.rule(), rule.meaning());
            }
            return ExitCode::from(2);
        }
    };
    // What a failing run says is told with its seed.
    std::panic::set_hook(Box::new(|_| {}));
    let began = Instant::now();
    let tally = run_seeds(wish.seeds.clone(), wish.broken);
    let few = wish.seeds.end - wish.seeds.start < ALL_KINDS;
    match report(&tally, began.elapsed(), few) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// The part of `cargo xtask scale` that is simulated: a row of the table for each number of peers, each in
/// a process of its own, so that its memory is its own, too.
fn measure_all(counts: &[String]) -> ExitCode {
    if let [one, count] = counts
        && one == "alone"
        && let Ok(count) = count.parse()
    {
        return measure(count);
    }
    let counts: Result<Vec<usize>, _> = counts.iter().map(|count| count.parse()).collect();
    let Some(counts) = counts
        .ok()
        .filter(|all| all.iter().all(|n| (10..=2000).contains(n)))
    else {
        eprintln!("scale: give numbers of peers from 10 to 2000");
        return ExitCode::from(2);
    };
    println!("{}", scale::HEAD);
    let this = std::env::current_exe().unwrap();
    let row = |peers: &usize| {
        let mut row = std::process::Command::new(&this);
        row.args(["scale", "alone", &peers.to_string()]);
        row.status().unwrap().success()
    };
    let good = counts.iter().filter(|peers| row(peers)).count();
    println!(
        "scale, simulated: {} sizes, {} peers, {} checks, {} sizes out of bounds",
        counts.len(),
        counts.iter().sum::<usize>(),
        counts.len() * scale::CHECKS,
        counts.len() - good
    );
    match good == counts.len() && good > 0 {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn measure(peers: usize) -> ExitCode {
    let row = scale::measure(peers);
    row.print();
    let broken = row.broken();
    for bound in &broken {
        println!("broken: {bound}");
    }
    match broken.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn parse(args: &[String]) -> Result<Wish, String> {
    let mut wish = Wish {
        seeds: 0..1000,
        broken: Broken::Nothing,
    };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let value = args.next().ok_or(format!("{arg} needs a value"))?;
        let number = || {
            value
                .parse::<u64>()
                .map_err(|_| format!("{arg}: {value} is no number"))
        };
        match arg.as_str() {
            "--seeds" => wish.seeds.end = wish.seeds.start + number()?,
            "--from" => {
                let count = wish.seeds.end - wish.seeds.start;
                wish.seeds = number()?..number()? + count;
            }
            "--seed" => wish.seeds = number()?..number()? + 1,
            "--break" => {
                let mut rules = Broken::ALL.into_iter();
                let rule = rules.find(|rule| rule.rule() == value);
                wish.broken = rule.ok_or(format!("there is no rule {value}"))?;
            }
            _ => return Err(format!("{arg} is not known")),
        }
    }
    Ok(wish)
}

/// Prints what came of it; whether all is well.
fn report(tally: &Tally, took: Duration, few: bool) -> bool {
    for (seed, why) in &tally.failures {
        println!("seed {seed}: {why}");
    }
    for (kind, times) in tally.faults.iter().chain(&tally.sights) {
        println!("{times:>12}  {kind}");
    }
    let lack = tally.lack().filter(|_| !few);
    if let Some(kind) = lack {
        println!("not once: {kind}");
    }
    let (seeds, checks, faults) = (tally.seeds, tally.checks, tally.fault_count());
    println!(
        "sim: {seeds} seeds, {checks} checks, {faults} faults, {} virtual seconds in {:.0} s, {} failed",
        tally.virtual_time.as_secs(),
        took.as_secs_f64(),
        tally.failures.len(),
    );
    tally.failures.is_empty() && lack.is_none() && seeds > 0 && checks > 0 && faults > 0
}

/// So many seeds have every kind of fault among them.
const ALL_KINDS: u64 = 100;
