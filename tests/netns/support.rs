//! What all namespace tests use: a lab that goes down with its guard, commands with a deadline, and
//! waiting for a condition instead of for a while.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};
use std::{env, process, thread};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use weft_api::report::{Connection, Reach, Report};

use super::helper::{MARK, TASK};

/// The program under test.
pub(crate) const WEFT: &str = env!("CARGO_BIN_EXE_weft");
/// How long any one command may take: the longest brings a lab of fifty hosts up.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a change may take to be known everywhere.
pub(crate) const SOON: Duration = Duration::from_secs(15);

/// How many times as much tests of traffic are to send: `WEFT_TEST_VOLUME=128` sends a gigabyte each way.
pub(crate) fn volume() -> usize {
    let volume = env::var("WEFT_TEST_VOLUME").map(|volume| volume.parse().unwrap());
    volume.unwrap_or(1)
}

/// Whether namespace tests can run here; says so if they cannot.
pub(crate) fn possible() -> bool {
    if geteuid().is_root() {
        return true;
    }
    assert!(
        env::var_os("CI").is_none(),
        "namespace tests need root, and are never skipped where CI is set"
    );
    println!("skipped: namespace tests need root");
    false
}

/// What a command came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) printed: String,
    pub(crate) said: String,
}

impl Outcome {
    /// What it printed, if it succeeded.
    #[track_caller]
    pub(crate) fn success(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.printed
    }

    /// What it said on standard error, if it failed with this exit code.
    #[track_caller]
    pub(crate) fn failure(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        self.said
    }
}

/// The weft program, as if called from a shell without any `WEFT_` variable.
pub(crate) fn weft(words: &[&str]) -> Command {
    let mut command = Command::new(WEFT);
    command.args(words).stdin(Stdio::null());
    for (name, _) in env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"WEFT_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command to its end.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Outcome {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    finish(command.spawn().unwrap(), &format!("{command:?}"))
}

/// Waits for the end of a child whose output is piped.
#[track_caller]
pub(crate) fn finish(child: Child, what: &str) -> Outcome {
    let pid = child.id();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    let Ok(output) = receiver.recv_timeout(PATIENCE) else {
        signal(pid, Signal::SIGTERM);
        panic!("{what} did not end within {PATIENCE:?}");
    };
    let output = output.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Outcome {
        code: output.status.code(),
        printed: text(&output.stdout),
        said: text(&output.stderr),
    }
}

/// Sends a signal to a process of ours; it may be gone already.
pub(crate) fn signal(pid: u32, signal: Signal) {
    let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal);
}

/// Waits until `look` succeeds and gives back what it found; its last complaint is told if it does not.
#[track_caller]
pub(crate) fn eventually<T, E: Display>(
    what: &str,
    within: Duration,
    mut look: impl FnMut() -> Result<T, E>,
) -> T {
    let begin = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(why) => assert!(
                begin.elapsed() < within,
                "not within {within:?}: {what}; at last: {why}"
            ),
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// A condition as `eventually` wants it.
pub(crate) fn ensure(condition: bool, otherwise: impl Display) -> Result<(), String> {
    if condition {
        Ok(())
    } else {
        Err(otherwise.to_string())
    }
}

/// A lab of one test; it goes down with this value.
#[derive(Debug)]
pub(crate) struct Lab {
    name: String,
}

impl Lab {
    /// A lab where every container reaches every other; `name` is short and unlike that of other tests.
    #[track_caller]
    pub(crate) fn up(name: &str, hosts: u16, containers: u16, launch: &[&str]) -> Self {
        let lab = Self::named(name);
        lab.bring_up(hosts, containers, &[&["--"], launch].concat())
            .success();
        if !launch.contains(&"--no-discovery") {
            lab.settles(hosts);
        }
        lab
    }

    /// Waits until each host sees the whole mesh. Before, peers' views of a broadcast tree may differ,
    /// and a single flooded frame may miss a host.
    #[track_caller]
    fn settles(&self, hosts: u16) {
        let links = usize::from(hosts) * usize::from(hosts - 1);
        eventually("each host sees the whole mesh", SOON * 3, || {
            for host in 1..=hosts {
                let report = self.report(&format!("host{host}"));
                let seen = report.router.peers.iter().flat_map(|peer| &peer.links);
                let seen = seen.filter(|link| link.established).count();
                ensure(seen == links, format!("host{host} sees {seen} of {links}"))?;
            }
            Ok::<(), String>(())
        });
    }

    /// Hosts and containers without routers.
    #[track_caller]
    pub(crate) fn bare(name: &str, hosts: u16, containers: u16) -> Self {
        let lab = Self::named(name);
        lab.bring_up(hosts, containers, &["--no-router"]).success();
        lab
    }

    /// A lab that is not up yet.
    pub(crate) fn named(name: &str) -> Self {
        Self {
            name: format!("{name}-{}", process::id()),
        }
    }

    /// Runs `weft lab up`.
    pub(crate) fn bring_up(&self, hosts: u16, containers: u16, more: &[&str]) -> Outcome {
        let (hosts, containers) = (hosts.to_string(), containers.to_string());
        let size = ["--hosts", &hosts, "--containers", &containers];
        let words = [&["lab", "up", "--name", &self.name], size.as_slice(), more].concat();
        run(&mut weft(&words))
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// `weft lab WORD --name …`, to be run.
    pub(crate) fn lab(&self, word: &str, more: &[&str]) -> Command {
        weft(&[&["lab", word, "--name", &self.name], more].concat())
    }

    /// A command in a place, to be run.
    pub(crate) fn command(&self, place: &str, words: &[&str]) -> Command {
        self.lab("exec", &[&[place, "--"], words].concat())
    }

    /// Runs a command in a place.
    #[track_caller]
    pub(crate) fn exec(&self, place: &str, words: &[&str]) -> Outcome {
        run(&mut self.command(place, words))
    }

    /// Runs a command in a place that must succeed, and gives back what it printed.
    #[track_caller]
    pub(crate) fn ok(&self, place: &str, words: &[&str]) -> String {
        self.exec(place, words).success()
    }

    /// Starts a task of [`super::helper`] in a place, and waits until it is ready.
    #[track_caller]
    pub(crate) fn helper(&self, place: &str, task: &[&str]) -> Helper {
        Helper::start(self, place, task)
    }

    /// Runs a task of [`super::helper`] in a place to its end; what it reported comes back.
    #[track_caller]
    pub(crate) fn task(&self, place: &str, task: &[&str]) -> Vec<String> {
        self.helper(place, task).wait()
    }

    /// What the router on a host says of itself.
    #[track_caller]
    pub(crate) fn report(&self, host: &str) -> Report {
        serde_json::from_str(&self.ok(host, &["weft", "report"])).unwrap()
    }

    /// One echo from one place to another, which must be answered within a second.
    pub(crate) fn ping(&self, from: &str, to: &str) -> Result<(), String> {
        let outcome = self.exec(from, &["weft", "lab", "ping", to]);
        ensure(outcome.code == Some(0), format!("{from}: {outcome:?}"))
    }

    /// The same by IPv6.
    pub(crate) fn ping6(&self, from: &str, to: &str) -> Result<(), String> {
        let outcome = self.exec(from, &["weft", "lab", "ping", "-6", to]);
        ensure(outcome.code == Some(0), format!("{from}: {outcome:?}"))
    }

    /// Waits until `from` reaches `to` by IPv6.
    #[track_caller]
    pub(crate) fn pings6(&self, from: &str, to: &str, within: Duration) {
        eventually(&format!("{from} pings {to} by IPv6"), within, || {
            self.ping6(from, to)
        });
    }

    /// Waits until `from` reaches `to`.
    #[track_caller]
    pub(crate) fn pings(&self, from: &str, to: &str, within: Duration) {
        eventually(&format!("{from} pings {to}"), within, || {
            self.ping(from, to)
        });
    }

    /// Process number of a host's router, as the host sees it.
    #[track_caller]
    pub(crate) fn router(&self, host: &str) -> String {
        let pid = self.ok(host, &["cat", "/run/weft/weft.pid"]);
        pid.trim().to_owned()
    }

    /// Ends a host's router as a crash would.
    #[track_caller]
    pub(crate) fn crash(&self, host: &str) {
        let pid = self.router(host);
        self.ok(host, &["sh", "-c", &format!("kill -9 {pid}")]);
        eventually("the router is gone", SOON, || {
            let gone = self
                .exec(host, &["test", "-e", &format!("/proc/{pid}/exe")])
                .code
                == Some(1);
            ensure(gone, "it is still there")
        });
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() {
            for host in ["host1", "host2", "host3"] {
                let log = self.exec(host, &["tail", "-n", "15", "/var/lib/weft/weft.log"]);
                println!("--- log of {host} in {}\n{}", self.name, log.printed);
            }
        }
        let down = run(&mut self.lab("down", &[]));
        if !thread::panicking() {
            assert_eq!(down.code, Some(0), "{down:?}");
        }
    }
}

/// The connections of a report to this peer, by nickname.
pub(crate) fn connections<'a>(report: &'a Report, nickname: &str) -> Vec<&'a Connection> {
    let to = |connection: &&Connection| connection.nickname.as_deref() == Some(nickname);
    report.router.connections.iter().filter(to).collect()
}

/// How a report says a peer is reached, by nickname.
pub(crate) fn reach(report: &Report, nickname: &str) -> Option<Reach> {
    let mut peers = report.router.peers.iter();
    peers
        .find(|peer| peer.nickname == nickname)
        .map(|peer| peer.reachable)
}

/// A task of ours that runs in a lab, until its standard input ends if it does not end by itself.
#[derive(Debug)]
pub(crate) struct Helper {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    noise: Receiver<String>,
    task: String,
}

impl Helper {
    #[track_caller]
    fn start(lab: &Lab, place: &str, task: &[&str]) -> Self {
        let program = env::current_exe().unwrap();
        let words = [
            program.to_str().unwrap(),
            "--exact",
            "helper::helper",
            "--nocapture",
        ];
        let mut command = lab.command(place, &words);
        command
            .env(TASK, task.join(" "))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some(line) = line.strip_prefix(MARK) {
                    let _ = sender.send(line.to_owned());
                }
            }
        });
        let (sender, noise) = mpsc::channel();
        let mut errors = child.stderr.take().unwrap();
        thread::spawn(move || {
            let mut text = String::new();
            let _ = errors.read_to_string(&mut text);
            sender.send(text)
        });
        let helper = Self {
            input: child.stdin.take(),
            child,
            lines,
            noise,
            task: format!("{} in {place}", task.join(" ")),
        };
        helper.expect("ready");
        helper
    }

    /// The next thing it reports.
    #[track_caller]
    pub(crate) fn line(&self) -> String {
        self.lines
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| panic!("{} says nothing; {}", self.task, self.complaint()))
    }

    #[track_caller]
    fn expect(&self, line: &str) {
        assert_eq!(self.line(), line, "{}", self.task);
    }

    /// Tells it to end, and gives back what it reported since.
    #[track_caller]
    pub(crate) fn end(mut self) -> Vec<String> {
        drop(self.input.take());
        self.wait()
    }

    /// Waits for its end, and gives back what it reported.
    #[track_caller]
    pub(crate) fn wait(mut self) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE * volume() as u32;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "{} does not end", self.task);
            thread::sleep(Duration::from_millis(20));
        };
        assert!(
            status.success(),
            "{} failed: {}",
            self.task,
            self.complaint()
        );
        self.lines.iter().collect()
    }

    fn complaint(&self) -> String {
        self.noise
            .recv_timeout(Duration::from_secs(1))
            .unwrap_or_default()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // What runs in the lab is asked to end too.
            signal(self.child.id(), Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }
}

/// A path for a file that helpers in labs and the test share.
pub(crate) fn shared_file(folder: &tempfile::TempDir, name: &str) -> (PathBuf, String) {
    let path = folder.path().join(name);
    let text = path.to_str().unwrap().to_owned();
    (path, text)
}

/// The counters and gauges a router shows at `/metrics`, labels included in their names.
#[track_caller]
pub(crate) fn metrics(lab: &Lab, host: &str) -> BTreeMap<String, u64> {
    let lines = lab.task(host, &["http-get", "127.0.0.1:6782", "/metrics"]);
    let values = lines.iter().filter(|line| !line.starts_with('#'));
    let values = values.filter_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    });
    values.collect()
}
