//! What a developer and the build machine run: `cargo xtask check`, `cargo xtask test`, and the rest.
//!
//! One place for it, in the language of the project, so that both run the same. Whatever a task needs
//! beyond cargo it installs itself, because a machine that happens to have a tool hides that others
//! lack it.

mod bench;

use std::env;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

const USAGE: &str = "\
cargo xtask check   what to run before a commit: lint, then test
cargo xtask test    all tests (as root: with real network namespaces)
cargo xtask docker [NAME]
                    weft with real Docker daemons, three hosts on this machine (root); only scenarios
                    with NAME in theirs, if it is given
cargo xtask sim [--seeds N] [--from S] [--seed S] [--break RULE]
                    the simulated cluster under faults: 1000 seeds, N, from 0 or S on, or one alone; with a rule
                    switched off it must fail
cargo xtask chaos [--minutes M] [--seed S]
                    real routers in namespaces, broken at random (root)
cargo xtask docker-bench
                    how much longer `docker run` takes with weft (root, some minutes)
cargo xtask scale [--peers N,…]
                    what so many routers cost: simulated, and up to 50 of them real ones, too (root)
cargo xtask lint    fmt, clippy, docs, deny, the unit for systemd
cargo xtask bench [NAME]
                    how long each step of a frame's way takes; only benches with NAME in theirs, if it is given
cargo xtask bench --instructions [NAME]
                    how many instructions it takes, counted by valgrind
cargo xtask fuzz [SECONDS]
                    run each fuzz target (needs a nightly toolchain), 60 s unless told otherwise
";

/// One step: what it is called, and the command.
struct Step {
    name: &'static str,
    command: Vec<String>,
    env: Vec<(&'static str, &'static str)>,
}

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        ["check"] => lint().and_then(|()| test()),
        ["test"] => test(),
        ["docker"] => docker(""),
        ["docker", name] => docker(name),
        ["sim", more @ ..] => sim(more),
        ["chaos", more @ ..] => chaos(more),
        ["scale"] => scale(SIZES),
        ["scale", "--peers", sizes] => scale(sizes),
        ["docker-bench"] => docker_bench(),
        ["lint"] => lint(),
        ["bench"] => bench::time(""),
        ["bench", "--instructions"] => bench::count(""),
        ["bench", "--instructions", name] => bench::count(name),
        ["bench", name] => bench::time(name),
        ["fuzz"] => fuzz("60"),
        ["fuzz", seconds] => fuzz(seconds),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("xtask: {what}");
            ExitCode::FAILURE
        }
    }
}

fn test() -> Result<(), String> {
    install_packages(&[
        ("nft", "nftables"),
        ("iptables", "iptables"),
        ("ip", "iproute2"),
        ("ethtool", "ethtool"),
        ("sysctl", "procps"),
    ])?;
    run(cargo("tests", "test --workspace --locked"))
}

/// The simulated cluster, see `tests/cluster.rs`. What it prints last is the last that is printed. Built with the
/// features of the workspace, which are those of the program, so that no dependency is compiled twice.
fn sim(more: &[&str]) -> Result<(), String> {
    run(cargo(
        "build of sim",
        "build --workspace --locked --bin sim",
    ))?;
    let mut command = vec![built("debug/sim")?];
    command.extend(more.iter().map(|word| (*word).to_owned()));
    to_the_end(&Step {
        name: "sim",
        command,
        env: Vec::new(),
    })
}

/// The path of what cargo built in the folder where it built this program (as `debug/xtask`).
fn built(what: &str) -> Result<String, String> {
    let this = env::current_exe().map_err(|e| format!("where this program is: {e}"))?;
    let folder = this.ancestors().nth(2).ok_or("this program is nowhere")?;
    Ok(folder.join(what).display().to_string())
}

/// Faults in real namespaces, see `tests/chaos.rs`.
fn chaos(more: &[&str]) -> Result<(), String> {
    needs_namespaces()?;
    let mut step = cargo("chaos", "test --workspace --quiet --locked --test chaos --");
    step.command
        .extend(more.iter().map(|word| (*word).to_owned()));
    to_the_end(&step)
}

/// What clusters of these sizes cost: all simulated, and with real routers as far as one machine has room for
/// them. All are measured, whatever comes of the first.
fn scale(sizes: &str) -> Result<(), String> {
    let sizes: Vec<&str> = sizes.split(',').collect();
    let is_real = |size: &&str| size.parse::<u16>().is_ok_and(|n| n <= MOST_REAL);
    let real: Vec<&str> = sizes.iter().copied().filter(is_real).collect();
    run(cargo(
        "build of sim",
        "build --workspace --locked --bin sim",
    ))?;
    let sim = built("debug/sim")?;
    let simulated = [&[sim.as_str(), "scale"], sizes.as_slice()].concat();
    let mut outcomes = vec![checks("simulated", &simulated)];
    if !real.is_empty() {
        needs_namespaces()?;
        let cargo = "cargo test --workspace --release --quiet --locked --test scale --";
        let words: Vec<&str> = cargo.split(' ').chain(real.iter().copied()).collect();
        outcomes.push(checks("with real routers", &words));
    }
    let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    let made: Vec<u64> = outcomes.iter().flatten().copied().collect();
    println!(
        "scale: {} sizes simulated, {} with real routers, {} checks made, {failed} of the two failed",
        sizes.len(),
        real.len(),
        made.iter().sum::<u64>()
    );
    match failed == 0 && made.iter().all(|made| *made > 0) {
        true => Ok(()),
        false => Err("see the lines that say `broken`".into()),
    }
}

/// Runs a measurement; how many checks it made, which its last line says in front of the word.
fn checks(name: &str, words: &[&str]) -> Result<u64, String> {
    println!("== {name}: {}", words.join(" "));
    let (program, args) = words.split_first().ok_or("a step without a command")?;
    let mut child = command(program)
        .args(args)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{program}: {e}"))?;
    let mut last = String::new();
    for line in child
        .stdout
        .take()
        .into_iter()
        .flat_map(|out| BufReader::new(out).lines())
    {
        last = line.map_err(|e| format!("{program}: {e}"))?;
        println!("{last}");
    }
    let status = child.wait().map_err(|e| format!("{program}: {e}"))?;
    let words: Vec<&str> = last.split_whitespace().collect();
    let count = words.windows(2).find(|pair| matches!(pair, [_, "checks,"]));
    let count = count.and_then(|pair| pair.first()?.parse().ok());
    match (status.success(), count) {
        (true, Some(count)) => Ok(count),
        (true, None) => Err(format!("{name} does not say what it checked")),
        (false, _) => Err(format!("{name} failed ({status})")),
    }
}

/// What `scale` measures if nothing else is said, and the largest number of real routers.
const SIZES: &str = "20,50,100,300";
const MOST_REAL: u16 = 50;

/// The scenarios of `tests/docker.rs`. Nothing is skipped: what is missing is an error.
fn docker(name: &str) -> Result<(), String> {
    needs_docker()?;
    let args = format!("test --workspace --locked --test docker -- --test-threads=2 {name}");
    run(cargo("docker", &args))
}

/// A measurement on one of their hosts, with an optimised program.
fn docker_bench() -> Result<(), String> {
    needs_docker()?;
    let args =
        "test --workspace --release --locked --test docker -- --ignored --nocapture overhead";
    run(cargo("docker run", args))
}

/// What tests with real routers in namespaces need.
fn needs_namespaces() -> Result<(), String> {
    if !is_root() {
        return Err("its hosts are network namespaces: run it as root".into());
    }
    install_packages(&[("nft", "nftables"), ("ip", "iproute2")])
}

fn needs_docker() -> Result<(), String> {
    if !is_root() {
        return Err(
            "the hosts of this test are namespaces with Docker in them: run it as root".into(),
        );
    }
    install_packages(DOCKER_NEEDS)?;
    match DOCKER_NEEDS.iter().find(|(program, _)| !has(program)) {
        None => Ok(()),
        Some((program, package)) => Err(format!(
            "there is no {program} (Debian's {package}): install it"
        )),
    }
}

/// What the hosts and images of `tests/docker.rs` are made with.
const DOCKER_NEEDS: &[(&str, &str)] = &[
    ("dockerd", "docker.io"),
    ("docker", "docker.io"),
    ("docker-compose", "docker-compose"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("tini", "tini"),
    ("busybox", "busybox-static"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("strip", "binutils"),
    ("tar", "tar"),
];

fn lint() -> Result<(), String> {
    run(cargo("format", "fmt --all --check"))?;
    run(cargo(
        "clippy",
        "clippy --workspace --all-targets --locked -- -D warnings",
    ))?;
    // Not among all targets, because they are not part of a plain `cargo test`.
    run(cargo(
        "clippy of the Docker scenarios, the faults and what it costs",
        "clippy --workspace --test docker --test chaos --test scale --locked -- -D warnings",
    ))?;
    verify_unit()?;
    let mut docs = cargo("documentation", "doc --workspace --no-deps --locked");
    docs.env.push(("RUSTDOCFLAGS", "-D warnings"));
    run(docs)?;
    if !has("cargo-deny") {
        // Without optimisation it is there in half the time.
        run(cargo(
            "install cargo-deny",
            "install cargo-deny --locked --debug",
        ))?;
    }
    run(cargo(
        "licences, bans, sources",
        "deny --log-level error check licenses bans sources",
    ))
}

/// The unit for systemd, which need not run here. It names the program where it is installed to; here
/// another that is there has to do.
fn verify_unit() -> Result<(), String> {
    install_packages(&[("systemd-analyze", "systemd")])?;
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let unit = std::fs::read_to_string(project.join("dist/weft.service"))
        .map_err(|e| format!("dist/weft.service: {e}"))?;
    let folder = project.join("target/unit");
    let copy = folder.join("weft.service");
    let unit = unit.replace("=/usr/local/bin/weft ", "=/bin/true ");
    std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::write(&copy, unit))
        .map_err(|e| format!("{}: {e}", copy.display()))?;
    run(Step {
        name: "the unit for systemd",
        command: vec![
            "systemd-analyze".to_owned(),
            "verify".to_owned(),
            copy.display().to_string(),
        ],
        env: Vec::new(),
    })
}

fn fuzz(seconds: &str) -> Result<(), String> {
    if !has("cargo-fuzz") {
        run(cargo("install cargo-fuzz", "install cargo-fuzz --locked"))?;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/fuzz_targets");
    let mut targets: Vec<String> = std::fs::read_dir(&folder)
        .map_err(|e| format!("cannot read {}: {e}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    targets.sort();
    for target in targets {
        let args = format!("+nightly fuzz run {target} -- -max_total_time={seconds}");
        run(cargo("fuzz", &args))?;
    }
    Ok(())
}

fn cargo(name: &'static str, args: &str) -> Step {
    let command = ["cargo"].into_iter().chain(args.split_whitespace());
    Step {
        name,
        command: command.map(str::to_owned).collect(),
        env: Vec::new(),
    }
}

/// A program to be started as from a shell. What cargo tells this program of its own package would have some crates
/// built anew, and all that stand on them, whenever cargo is called by hand in between.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    let names = env::vars_os().map(|(name, _)| name);
    for name in names.filter(|name| is_of_package(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    command
}

fn is_of_package(name: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

fn run(step: Step) -> Result<(), String> {
    let started = Instant::now();
    let done = to_the_end(&step);
    println!("== {}: {:.0} s", step.name, started.elapsed().as_secs_f64());
    done
}

fn to_the_end(step: &Step) -> Result<(), String> {
    let (program, args) = step
        .command
        .split_first()
        .ok_or("a step without a command")?;
    println!("== {}: {}", step.name, step.command.join(" "));
    let status = command(program)
        .args(args)
        .envs(step.env.iter().copied())
        .status()
        .map_err(|e| format!("{program}: {e}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{} failed ({status})", step.name))
    }
}

/// Installs the Debian packages of the programs that are missing; as root only.
fn install_packages(needed: &[(&str, &'static str)]) -> Result<(), String> {
    let missing: Vec<_> = needed
        .iter()
        .filter(|(program, _)| !has(program))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !Path::new("/usr/bin/apt-get").exists() || !is_root() {
        println!("xtask: not installed: {list}; the tests that need it will say so");
        return Ok(());
    }
    let apt = |args: &str| Step {
        name: "packages",
        command: ["apt-get"]
            .into_iter()
            .chain(args.split_whitespace())
            .map(str::to_owned)
            .collect(),
        env: vec![("DEBIAN_FRONTEND", "noninteractive")],
    };
    run(apt("-q update"))?;
    run(apt(&format!("-q -y install {list}")))
}

fn has(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(program).exists())
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|m| {
        use std::os::unix::fs::MetadataExt;
        m.uid() == 0
    })
}
