//! A router with nothing to do does next to nothing.

use std::thread;
use std::time::Duration;

use super::support::{Lab, possible};

/// Clock ticks of `/proc/PID/stat` per second: the same on all Linux machines we know (USER_HZ).
const TICKS: u64 = 100;
/// Time in which a young network stops being busy with itself.
const TO_REST: Duration = Duration::from_secs(20);
const WATCHED: Duration = Duration::from_secs(10);

#[test]
fn a_router_at_rest_takes_little_time_and_memory() {
    if !possible() {
        return;
    }
    let lab = Lab::up("rest", 3, 1, &["--password", "a-password-for-the-lan"]);
    let hosts = ["host1", "host2", "host3"];
    let routers = hosts.map(|host| (host, lab.router(host)));
    thread::sleep(TO_REST);
    let before = routers.each_ref().map(|(host, pid)| ticks(&lab, host, pid));
    thread::sleep(WATCHED);
    for ((host, pid), before) in routers.iter().zip(before) {
        let spent = ticks(&lab, host, pid) - before;
        let memory = resident_kib(&lab, host, pid);
        println!("{host}: {spent} ticks in {WATCHED:?}, {memory} KiB");
        // What is built without optimisation is about ten times slower.
        let allowed = if cfg!(debug_assertions) { 10 } else { 1 };
        let one_percent = TICKS * WATCHED.as_secs() / 100;
        assert!(
            spent <= one_percent * allowed,
            "{host}: {spent} ticks of {TICKS} a second in {WATCHED:?}"
        );
        assert!(memory < 30 * 1024, "{host}: {memory} KiB resident");
    }
}

/// Processor time a process has had, in ticks.
fn ticks(lab: &Lab, host: &str, pid: &str) -> u64 {
    let stat = lab.ok(host, &["cat", &format!("/proc/{pid}/stat")]);
    // Fields are counted behind the name, which may hold spaces; utime and stime are 14 and 15.
    let (_, behind) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<_> = behind.split(' ').collect();
    let time = |field: usize| fields[field - 3].parse::<u64>().unwrap();
    time(14) + time(15)
}

fn resident_kib(lab: &Lab, host: &str, pid: &str) -> u64 {
    let status = lab.ok(host, &["cat", &format!("/proc/{pid}/status")]);
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let (kib, _) = line.unwrap().trim().split_once(' ').unwrap();
    kib.parse().unwrap()
}
