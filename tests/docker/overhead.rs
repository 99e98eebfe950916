//! How much longer `docker run` takes with weft: a measurement, run by `cargo xtask docker-bench`, with nothing
//! else on the machine. It claims nothing, it prints.

use std::time::{Duration, Instant};

use super::bed::Bed;
use super::images::BUSYBOX;

/// How many containers are started each way; the ways take turns.
const RUNS: usize = 40;

#[test]
#[ignore = "a measurement"]
fn overhead_of_docker_run() {
    let bed = Bed::up(1);
    let host = "node01";
    let run = format!("run --rm {BUSYBOX} true");
    let proxy = "docker -H unix:///run/weft/docker.sock";
    bed.ok(host, &["weft", "launch"]);
    bed.ok(host, &["weft", "setup", "docker"]);
    let ways = [
        ("docker run --rm busybox true", format!("docker {run}")),
        (
            "--runtime=weft",
            format!("docker run --runtime=weft --rm {BUSYBOX} true"),
        ),
        ("through `weft env`", format!("{proxy} {run}")),
        (
            "--net=weft",
            format!("docker run --net=weft --rm {BUSYBOX} true"),
        ),
    ];
    let mut took = vec![Vec::new(); ways.len()];
    for _ in 0..RUNS {
        for (times, (_, line)) in took.iter_mut().zip(&ways) {
            let begin = Instant::now();
            bed.ok(host, &line.split(' ').collect::<Vec<_>>());
            times.push(begin.elapsed());
        }
    }
    let medians: Vec<Duration> = took.iter_mut().map(|times| median(times)).collect();
    println!("median of {RUNS}");
    for ((name, _), time) in ways.iter().zip(&medians) {
        let more = time.as_secs_f64() - medians[0].as_secs_f64();
        println!(
            "{:>7.1} ms  {:>+6.1} ms  {name}",
            time.as_secs_f64() * 1e3,
            more * 1e3
        );
    }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
