//! `cargo xtask chaos`: real routers in real namespaces, broken at random, and what it takes to be whole.
//!
//! Six hosts with a router and a container each, made by `weft lab`. Again and again one thing is
//! broken: a router is killed or stopped and launched again, two hosts are cut off from each other, a
//! host from all, a firewall is emptied or drops what routers send. When that is over, every container must
//! reach every other by name within [`WHOLE_WITHIN`]. At the end nothing may have piled up: no zombies,
//! namespaces, links, firewall rules, file descriptors or memory.
//!
//! The choice of faults comes from a seed; how long things take does not, since all of it is real.
//!
//! Invariant: the last line counts faults and checks; success means that every check held and that
//! no count is zero.
#![forbid(unsafe_code)]
#![allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "all of this is test; of what the namespace tests share some is not used here"
)]

#[path = "chaos/census.rs"]
mod census;
#[path = "chaos/faults.rs"]
mod faults;
#[path = "netns/frames.rs"]
mod frames;
#[path = "netns/helper.rs"]
mod helper;
#[path = "netns/machine.rs"]
mod machine;
#[path = "chaos/matrix.rs"]
mod matrix;
#[path = "netns/support.rs"]
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

use census::Census;
use faults::Fault;
use support::Lab;

const HOSTS: u16 = 6;
/// How soon after a fault is over everybody must reach everybody.
const WHOLE_WITHIN: Duration = Duration::from_secs(10);
/// How long something stays broken, at the most.
const LONGEST: u64 = 8_000;

const USAGE: &str = "\
cargo xtask chaos [--minutes M] [--seed S]

  --minutes M   how long (10 unless told otherwise)
  --seed S      which faults, in which order
";

/// What is counted.
#[derive(Default)]
struct Tally {
    checks: u64,
    faults: u64,
    failures: Vec<String>,
    took: Vec<(Duration, String)>,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((minutes, seed)) = parse(&args) else {
        eprint!("{USAGE}");
        return ExitCode::from(2);
    };
    if !support::possible() {
        eprintln!("chaos: this needs namespaces of its own: run it as root");
        return ExitCode::FAILURE;
    }
    let mut tally = Tally::default();
    let ended = catch_unwind(AssertUnwindSafe(|| run(minutes, seed, &mut tally)));
    if ended.is_err() {
        tally
            .failures
            .push("the run broke off, see above".to_owned());
    }
    report(tally, seed)
}

fn parse(args: &[String]) -> Option<(f64, u64)> {
    let (mut minutes, mut seed) = (10.0, 1);
    for pair in args.chunks(2) {
        match pair {
            [name, value] if name == "--minutes" => minutes = value.parse().ok()?,
            [name, value] if name == "--seed" => seed = value.parse().ok()?,
            _ => return None,
        }
    }
    Some((minutes, seed))
}

fn run(minutes: f64, seed: u64, tally: &mut Tally) {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let lab = Lab::up("chaos", HOSTS, 1, &[]);
    let took = matrix::whole(&lab, HOSTS, WHOLE_WITHIN * 3).expect("a lab that is up is whole");
    println!(
        "a lab of {HOSTS} hosts is whole after {:.1} s",
        took.as_secs_f64()
    );
    let before = Census::take(&lab, HOSTS);
    let end = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    while Instant::now() < end {
        let fault = Fault::draw(&mut rng, HOSTS);
        let broken_for = Duration::from_millis(rng.next_u64() % LONGEST);
        tally.faults += 1;
        fault.make(&lab);
        std::thread::sleep(broken_for);
        fault.mend(&lab);
        let what = format!("{fault}, for {:.1} s", broken_for.as_secs_f64());
        tally.checks += u64::from(HOSTS) * u64::from(HOSTS - 1);
        match matrix::whole(&lab, HOSTS, WHOLE_WITHIN) {
            Ok(took) => {
                println!("{:6.2} s  {what}", took.as_secs_f64());
                tally.took.push((took, what));
            }
            Err(why) => {
                println!("  never   {what}: {why}");
                tally
                    .failures
                    .push(format!("not whole after {what}: {why}"));
                // What comes next is to be judged by itself.
                if let Err(why) = matrix::whole(&lab, HOSTS, WHOLE_WITHIN * 12) {
                    tally
                        .failures
                        .push(format!("not even two minutes later: {why}"));
                    break;
                }
            }
        }
    }
    for (checks, wrong) in before.compare(&lab, HOSTS) {
        tally.checks += checks;
        tally.failures.extend(wrong);
    }
    drop(lab);
    tally.checks += 1;
    tally.failures.extend(census::left_outside());
}

fn report(mut tally: Tally, seed: u64) -> ExitCode {
    tally.took.sort();
    let at = |percent: usize| {
        let last = tally.took.len().checked_sub(1)?;
        tally.took.get(last * percent / 100)
    };
    for percent in [50, 90, 99, 100] {
        if let Some((took, what)) = at(percent) {
            println!(
                "{percent:3} %: whole within {:.2} s  ({what})",
                took.as_secs_f64()
            );
        }
    }
    for failure in &tally.failures {
        println!("wrong: {failure}");
    }
    let (faults, checks, failed) = (tally.faults, tally.checks, tally.failures.len());
    println!("chaos: seed {seed}, {checks} checks, {faults} faults, {failed} failed");
    match failed == 0 && faults > 0 && checks > 0 && !tally.took.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
