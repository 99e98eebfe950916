//! The test bed: hosts with a real dockerd each, on one LAN, on this machine.
//!
//! ```text
//!                    LAN namespace: bridge lan, 10.77.0.254, and 192.0.2.1 as "the internet"
//!                         |                |                |
//!                      node01           node02           node03        10.77.0.1, .2, .3
//! ```
//! A host is a set of namespaces (network, mount, uts, ipc, pid) with its own `/run`, `/etc` and `/var/lib`,
//! so that every program finds its usual paths and none sees another host's. Its dockerd starts its own
//! containerd. One kill of the host's first process ends all of it: daemons, containers, routers.
//!
//! Invariant: nothing is changed in the namespaces of whoever runs this; what is left behind by a bed that is
//! not taken down is a folder and empty cgroups, its processes die with the thread that made it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::command::{Outcome, SOON, ensure, eventually, run, words};
use super::images;

/// The program under test.
pub(crate) const WEFT: &str = env!("CARGO_BIN_EXE_weft");
/// An address beyond the LAN that every host has a route to and that answers pings.
pub(crate) const INTERNET: &str = "192.0.2.1";
/// Where the program under test is on each host.
const BIN: &str = "/run/bin";

/// Hosts on one LAN. They go down with this value.
#[derive(Debug)]
pub(crate) struct Bed {
    hosts: Vec<Host>,
    lan: Child,
    folder: TempDir,
}

/// One host. Its folder outlives its processes, as a disk does.
#[derive(Debug)]
struct Host {
    number: usize,
    folder: PathBuf,
    /// `unshare`, whose only child is the host's first process.
    parent: Child,
    first: u32,
    /// What its dockerd is started with beyond the usual.
    docker: Vec<String>,
}

impl Bed {
    /// So many hosts, called `node01` and on, with dockerd running and the image [`images::BUSYBOX`].
    #[track_caller]
    pub(crate) fn up(count: usize) -> Self {
        Self::up_with(count, &[])
    }

    /// The same with further arguments for every dockerd.
    #[track_caller]
    pub(crate) fn up_with(count: usize, docker: &[&str]) -> Self {
        let mut bed = Self::bare(count);
        for host in &mut bed.hosts {
            host.docker = docker.iter().map(|word| (*word).to_owned()).collect();
        }
        bed.on_all(|bed, host| {
            bed.start_docker(host);
            images::load_busybox(bed, host);
        });
        bed
    }

    /// Hosts without a dockerd.
    #[track_caller]
    pub(crate) fn bare(count: usize) -> Self {
        let folder = TempDir::with_prefix("weft-bed-").unwrap();
        let mut keep = dying_with_us(&["unshare", "--net", "sleep", "infinity"]);
        let lan = keep.stdin(Stdio::null()).spawn().unwrap();
        let mut bed = Self {
            hosts: Vec::new(),
            lan,
            folder,
        };
        bed.make_lan();
        for number in 1..=count {
            let folder = bed.folder.path().join(name(number));
            let host = bed.start_host(number, &folder);
            bed.hosts.push(host);
        }
        bed
    }

    /// The names of all hosts.
    pub(crate) fn names(&self) -> Vec<String> {
        self.hosts.iter().map(|host| name(host.number)).collect()
    }

    /// Does something on all hosts at once.
    #[track_caller]
    pub(crate) fn on_all(&self, each: impl Fn(&Self, &str) + Sync) {
        let names = self.names();
        thread::scope(|scope| {
            let each = &each;
            let running: Vec<_> = names
                .iter()
                .map(|host| scope.spawn(move || each(self, host)))
                .collect();
            for host in running {
                assert!(host.join().is_ok(), "one of the hosts failed, see above");
            }
        });
    }

    /// A command on a host, to be run; the program under test is `weft` there.
    pub(crate) fn command(&self, host: &str, command: &[&str]) -> Command {
        let host = self.host(host);
        let (first, path) = (host.first.to_string(), path());
        let enter = ["nsenter", "-t", &first, "-n", "-m", "-u", "-i", "-p", "--"];
        let clean = ["env", "-i", &path, "HOME=/root", "LANG=C"];
        words(&[&enter, clean.as_slice(), command].concat())
    }

    /// Runs a command on a host.
    #[track_caller]
    pub(crate) fn on(&self, host: &str, command: &[&str]) -> Outcome {
        run(&mut self.command(host, command))
    }

    /// Runs a command on a host that must succeed, and gives back what it printed.
    #[track_caller]
    pub(crate) fn ok(&self, host: &str, command: &[&str]) -> String {
        self.on(host, command).success()
    }

    /// Runs a line for the shell on a host that must succeed, and gives back what it printed.
    #[track_caller]
    pub(crate) fn sh(&self, host: &str, line: &str) -> String {
        self.ok(host, &["sh", "-c", line])
    }

    /// One echo from a container to a name or an address, which must be answered within two seconds.
    pub(crate) fn ping(&self, host: &str, container: &str, to: &str) -> Result<(), String> {
        let ping = ["ping", "-c", "1", "-W", "2", to];
        let outcome = self.on(
            host,
            &[&["docker", "exec", container], ping.as_slice()].concat(),
        );
        ensure(
            outcome.code == Some(0),
            format!("{container} does not reach {to}: {outcome:?}"),
        )
    }

    /// Waits until a container reaches a name or an address.
    #[track_caller]
    pub(crate) fn pings(&self, host: &str, container: &str, to: &str) {
        eventually(&format!("{container} pings {to}"), SOON, || {
            self.ping(host, container, to)
        });
    }

    /// Where a file of a host is for us.
    pub(crate) fn path(&self, host: &str, path: &str) -> PathBuf {
        let inside = path.strip_prefix("/run/").map(|rest| ("run", rest));
        let inside =
            inside.or_else(|| path.strip_prefix("/var/lib/").map(|rest| ("var-lib", rest)));
        let (root, rest) = inside.unwrap_or_else(|| panic!("{path} is not the host's own"));
        self.host(host).folder.join(root).join(rest)
    }

    /// A path of a host as its processes see it, mounts included.
    pub(crate) fn inside(&self, host: &str, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.host(host).first))
    }

    /// Launches a router on each host, with these arguments, and connects all to the first.
    #[track_caller]
    pub(crate) fn launch(&self, args: &[&str]) {
        for host in self.names() {
            let peers: &[&str] = if host == "node01" { &[] } else { &["node01"] };
            self.ok(&host, &[&["weft", "launch"], args, peers].concat());
        }
    }

    /// Starts a host's dockerd and waits until it answers.
    #[track_caller]
    pub(crate) fn start_docker(&self, host: &str) {
        self.start_docker_within(host, SOON);
    }

    /// The same, with so much time for it.
    #[track_caller]
    pub(crate) fn start_docker_within(&self, host: &str, patience: Duration) {
        let this = self.host(host);
        // A daemon that was killed leaves these, and the next would refuse to start.
        for left in ["docker.pid", "docker/containerd/containerd.pid"] {
            let _ = fs::remove_file(this.folder.join("run").join(left));
        }
        let log = this.folder.join("dockerd.log");
        let log = File::options().create(true).append(true).open(log);
        let log = log.unwrap();
        let cgroup = format!("--cgroup-parent=/{}", self.cgroup());
        let more: Vec<&str> = this.docker.iter().map(String::as_str).collect();
        let daemon = [&["dockerd", &cgroup], more.as_slice()].concat();
        let mut command = self.command(host, &daemon);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap());
        let mut child = command.stderr(log).spawn().unwrap();
        thread::spawn(move || child.wait());
        eventually(&format!("dockerd answers on {host}"), patience, || {
            // Not for long: a daemon that is starting takes the call and answers when it is done.
            let answer = self.on(host, &["timeout", "5", "docker", "version"]);
            ensure(
                answer.code == Some(0),
                format!("{answer:?}\n{}", self.docker_log(host)),
            )
        });
    }

    /// Has a host's dockerd end in order, and its containers with it.
    #[track_caller]
    pub(crate) fn stop_docker(&self, host: &str) {
        self.sh(host, "kill $(cat /run/docker.pid)");
        let pid = self.path(host, "/run/docker.pid");
        eventually("dockerd is gone", SOON, || {
            ensure(!pid.exists(), "its pid file is there")
        });
    }

    /// All of a host goes at once, as when its power is cut.
    #[track_caller]
    pub(crate) fn power_off(&mut self, host: &str) {
        let host = self.host_mut(host);
        host.end();
    }

    /// Starts a host again, with what is on its disk and an empty `/run`; no daemon is started.
    #[track_caller]
    pub(crate) fn power_on(&mut self, host: &str) {
        let index = self.index(host);
        let folder = self.hosts[index].folder.clone();
        let mut fresh = self.start_host(index + 1, &folder);
        fresh.docker = std::mem::take(&mut self.hosts[index].docker);
        self.hosts[index] = fresh;
    }

    fn docker_log(&self, host: &str) -> String {
        let log = fs::read_to_string(self.host(host).folder.join("dockerd.log"));
        tail(&log.unwrap_or_default(), 15)
    }

    fn index(&self, host: &str) -> usize {
        let found = self.hosts.iter().position(|h| name(h.number) == host);
        found.unwrap_or_else(|| panic!("there is no host {host}"))
    }

    fn host(&self, host: &str) -> &Host {
        &self.hosts[self.index(host)]
    }

    fn host_mut(&mut self, host: &str) -> &mut Host {
        let index = self.index(host);
        &mut self.hosts[index]
    }

    /// The cgroup all containers of this bed are in.
    fn cgroup(&self) -> String {
        let name = self.folder.path().file_name().unwrap();
        name.to_string_lossy().into_owned()
    }

    /// A bridge in a network namespace of its own, which also stands for the world beyond.
    fn make_lan(&self) {
        self.on_lan("ip link add lan type bridge");
        self.on_lan("ip link set lan up");
        self.on_lan("ip link set lo up");
        self.on_lan("ip addr add 10.77.0.254/24 dev lan");
        self.on_lan(&format!("ip addr add {INTERNET}/32 dev lo"));
    }

    fn on_lan(&self, command: &str) {
        let lan = self.lan.id().to_string();
        // `unshare` becomes `sleep`, in its new namespace, a moment after it was started.
        let new = format!("/proc/{lan}/ns/net");
        eventually("the LAN has its namespace", SOON, || {
            let differs = fs::read_link(&new).ok() != fs::read_link("/proc/self/ns/net").ok();
            ensure(differs, "it is ours still")
        });
        let enter = ["nsenter", "-t", &lan, "-n", "--"];
        let command: Vec<&str> = command.split(' ').collect();
        run(&mut words(&[&enter, command.as_slice()].concat())).success();
    }

    fn start_host(&self, number: usize, folder: &Path) -> Host {
        let _ = fs::remove_dir_all(folder.join("run"));
        for part in ["run/bin", "etc", "etc-work", "var-lib"] {
            fs::create_dir_all(folder.join(part)).unwrap();
        }
        std::os::unix::fs::symlink(WEFT, folder.join("run/bin/weft")).unwrap();
        let script = folder.join("host.sh");
        fs::write(&script, include_str!("host.sh")).unwrap();
        fs::write(folder.join("etc/hosts"), hosts_file()).unwrap();
        let log = File::create(folder.join("host.log")).unwrap();
        let own = "--net --mount --uts --ipc --pid --fork --kill-child --mount-proc";
        let mut unshare = vec!["unshare", "--propagation", "private"];
        unshare.extend(own.split(' '));
        let (name, place) = (name(number), folder.to_str().unwrap());
        unshare.extend(["sh", script.to_str().unwrap(), &name, place]);
        let mut command = dying_with_us(&unshare);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap());
        let parent = command.stderr(log).spawn().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", parent.id());
        let first = eventually(&format!("{name} is up"), SOON, || {
            let said = fs::read_to_string(folder.join("host.log")).unwrap_or_default();
            ensure(folder.join("run/ready").exists(), said)?;
            let children = fs::read_to_string(&children).unwrap_or_default();
            children
                .trim()
                .parse()
                .map_err(|_| format!("no child: {children}"))
        });
        self.connect(number, first);
        Host {
            number,
            folder: folder.to_owned(),
            parent,
            first,
            docker: Vec::new(),
        }
    }

    /// Puts a host on the LAN, with a route to the world beyond.
    fn connect(&self, number: usize, first: u32) {
        // A host that lost its power may have left its end here for a moment.
        let port = format!("port{number}");
        let lan = self.lan.id().to_string();
        let drop = ["nsenter", "-t", &lan, "-n", "ip", "link", "del", &port];
        run(&mut words(&drop));
        self.on_lan(&format!(
            "ip link add {port} type veth peer name eth0 netns {first}"
        ));
        self.on_lan(&format!("ip link set {port} master lan up"));
        let first = first.to_string();
        for line in [
            &format!("ip addr add 10.77.0.{number}/24 dev eth0"),
            "ip link set eth0 up",
            "ip link set lo up",
            "ip route add default via 10.77.0.254",
        ] {
            let enter = ["nsenter", "-t", &first, "-n", "--"];
            let line: Vec<&str> = line.split(' ').collect();
            run(&mut words(&[&enter, line.as_slice()].concat())).success();
        }
    }

    /// What helps to understand a failure.
    fn tell(&self) {
        for host in &self.hosts {
            println!(
                "--- dockerd of {}\n{}",
                name(host.number),
                self.docker_log(&name(host.number))
            );
            let log = fs::read_to_string(host.folder.join("var-lib/weft/weft.log"));
            println!(
                "--- router of {}\n{}",
                name(host.number),
                tail(&log.unwrap_or_default(), 15)
            );
        }
    }
}

impl Host {
    /// Ends all of it and waits until the kernel has taken it apart.
    fn end(&mut self) {
        let _ = kill(Pid::from_raw(self.first.cast_signed()), Signal::SIGKILL);
        let _ = self.parent.wait();
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if thread::panicking() {
            self.tell();
        }
        for host in &mut self.hosts {
            host.end();
        }
        let _ = self.lan.kill();
        let _ = self.lan.wait();
        remove_cgroups(&self.cgroup());
    }
}

/// A command that is killed when this thread ends.
fn dying_with_us(command: &[&str]) -> Command {
    words(&[&["setpriv", "--pdeathsig", "KILL"], command].concat())
}

/// Takes away the empty folders that containers leave in every cgroup hierarchy.
fn remove_cgroups(name: &str) {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten();
    let places = hierarchies.flatten().map(|entry| entry.path().join(name));
    for place in places.chain([Path::new("/sys/fs/cgroup").join(name)]) {
        remove_folders(&place);
    }
}

fn remove_folders(place: &Path) {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_folders(&entry.path());
        }
    }
    let _ = fs::remove_dir(place);
}

/// The environment's path on every host.
fn path() -> String {
    format!("PATH={BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}

/// Hosts know each other by name.
fn hosts_file() -> String {
    let lines = (1..=9).map(|number| format!("10.77.0.{number} {}\n", name(number)));
    format!("127.0.0.1 localhost\n{}", lines.collect::<String>())
}

fn name(number: usize) -> String {
    format!("node{number:02}")
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
