//! `weft launch`: the router as a background process, or in this one.
//!
//! In the background, the parent starts the same program again with `--foreground`, its output in a
//! log file, and waits until the control socket answers or the child is gone; what the child said
//! last is what the caller sees then. A password given as an argument is moved to the environment by
//! starting over, before anything else, so that it is not in the process list.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use anyhow::{Context, bail};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use weft_api::Report;
use weft_api::client::Client;
use weft_cli::launch::{LogLevel, Password};
use weft_cli::{GlobalArgs, LaunchArgs, exit};
use weft_wire::{PeerName, PeerUid};

use crate::config::{Config, Run};
use crate::start::{self, AlreadyRunning};

const PASSWORD: &str = "WEFT_PASSWORD";
/// What of our environment is nobody else's business.
pub(crate) const SECRETS: [&str; 2] = [PASSWORD, "NOTIFY_SOCKET"];
const LOG: &str = "weft.log";
/// How long the router may take to answer after it was started.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// How the line with the reason of the end begins in the log.
const LAST_WORDS: &str = "weft: error: ";
/// What is kept of an older log when a router starts, in bytes.
const KEPT_LOG: u64 = 1 << 20;

/// Runs `weft launch`.
///
/// # Errors
/// The arguments are wrong, a router runs already ([`AlreadyRunning`]), or the router did not come up.
pub fn launch(global: &GlobalArgs, args: &LaunchArgs) -> anyhow::Result<u8> {
    hide_password(args)?;
    let password = args.identity.password()?;
    check(global, args, password.is_some())?;
    if let Some(report) = running(global) {
        return Err(AlreadyRunning(format!(
            "peer {} answers on {}",
            report.router.name,
            global.socket.display()
        ))
        .into());
    }
    if args.foreground {
        log_to_stderr(args.log_level);
        start::run(args, &global.socket, password.as_ref())?;
        return Ok(exit::OK);
    }
    warn_about(password.as_ref());
    let report = in_background(global, args, password.as_ref())?;
    warn_of_copy(report.copied_state.as_deref());
    say(global, &report.router.name);
    Ok(exit::OK)
}

/// Starts this program over with the password in the environment, if it is among the arguments.
fn hide_password(args: &LaunchArgs) -> anyhow::Result<()> {
    let given: Vec<_> = env::args_os().skip(1).collect();
    let kept = without(&["--password"], &given);
    let (Some(password), true) = (&args.identity.password, kept.len() < given.len()) else {
        return Ok(());
    };
    let error = Command::new("/proc/self/exe")
        .arg0("weft")
        .args(kept)
        .env(PASSWORD, password.as_str())
        .exec();
    Err(error).context("cannot start over without the password among the arguments")
}

/// The arguments without these flags and their values.
fn without(flags: &[&str], arguments: &[OsString]) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let bytes = argument.as_encoded_bytes();
        if bytes == b"--" {
            kept.push(argument.clone());
            kept.extend(rest.cloned());
            break;
        }
        let value = flags
            .iter()
            .find_map(|flag| bytes.strip_prefix(flag.as_bytes()));
        match value {
            Some(b"") => drop(rest.next()),
            Some([b'=', ..]) => {}
            Some(_) | None => kept.push(argument.clone()),
        }
    }
    kept
}

/// Finds what is wrong with the arguments now, where the caller sees it.
fn check(global: &GlobalArgs, args: &LaunchArgs, password: bool) -> anyhow::Result<()> {
    let run = Run {
        own: PeerName::from_bytes([0; 6]),
        uid: PeerUid(0),
        started: 0,
        password,
    };
    Config::new(args, &global.socket, run)?;
    Ok(())
}

fn running(global: &GlobalArgs) -> Option<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()?;
    runtime.block_on(Client::new(&global.socket).status()).ok()
}

fn in_background(
    global: &GlobalArgs,
    args: &LaunchArgs,
    password: Option<&Password>,
) -> anyhow::Result<Report> {
    let (path, mut log) = open_log(&args.host.state_dir)?;
    let from = log.seek(SeekFrom::End(0))?;
    // The password file may be a pipe, which is read once; so the child gets what was in it.
    let given: Vec<_> = env::args_os().skip(1).collect();
    let mut child = Command::new("/proc/self/exe")
        .arg0("weft")
        .args(without(&["--password-file"], &given))
        .env_remove("WEFT_PASSWORD_FILE")
        .env(PASSWORD, password.map_or("", Password::as_str))
        .env("WEFT_FOREGROUND", "true")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // A group of its own: a Ctrl-C meant for the caller does not end the router.
        .process_group(0)
        .spawn()
        .context("cannot start the router process")?;
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        if let Some(report) = running(global) {
            return Ok(report);
        }
        if let Some(status) = child.try_wait()? {
            return Err(not_up(status.code(), &path, from));
        }
        thread::sleep(POLL);
    }
    give_up(&mut child, &path)
}

fn give_up(child: &mut Child, log: &Path) -> anyhow::Result<Report> {
    child.kill()?;
    bail!(
        "the router did not answer within {} s and was ended; its log is {}",
        PATIENCE.as_secs(),
        log.display()
    )
}

/// What the child said before it ended.
fn not_up(code: Option<i32>, log: &Path, from: u64) -> anyhow::Error {
    let said = last_error(log, from).unwrap_or_else(|| {
        format!(
            "the router ended without a word; its log is {}",
            log.display()
        )
    });
    if code == Some(exit::ALREADY_RUNNING.into()) {
        return AlreadyRunning("another process holds its state".to_owned()).into();
    }
    anyhow::anyhow!(said)
}

fn last_error(log: &Path, from: u64) -> Option<String> {
    let mut file = File::open(log).ok()?;
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    let at = text.rfind(LAST_WORDS)?;
    Some(text.get(at + LAST_WORDS.len()..)?.trim_end().to_owned())
}

fn open_log(dir: &Path) -> anyhow::Result<(PathBuf, File)> {
    let path = dir.join(LOG);
    let open = || -> std::io::Result<File> {
        fs::create_dir_all(dir)?;
        let log = File::options()
            .create(true)
            .append(true)
            .read(true)
            .mode(0o600)
            .open(&path)?;
        if log.metadata()?.len() > KEPT_LOG {
            fs::rename(&path, dir.join("weft.log.1"))?;
            return File::options()
                .create(true)
                .append(true)
                .read(true)
                .mode(0o600)
                .open(&path);
        }
        Ok(log)
    };
    let log = open().with_context(|| {
        format!(
            "cannot write the router's log {}: run weft as root, or choose another --state-dir",
            path.display()
        )
    })?;
    Ok((path, log))
}

pub(crate) fn log_to_stderr(level: LogLevel) {
    let level = match level {
        LogLevel::Error => tracing::Level::ERROR,
        LogLevel::Warning => tracing::Level::WARN,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Debug => tracing::Level::DEBUG,
    };
    let filter = LevelFilter::from_level(level);
    let lines = tracing_subscriber::fmt::layer()
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr);
    let _ = tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .try_init();
}

#[expect(
    clippy::print_stderr,
    reason = "the caller of `weft launch` reads this"
)]
fn warn_about(password: Option<&Password>) {
    match password {
        None => eprintln!(
            "weft: no password: traffic is encrypted, but anybody who reaches the port can join. `weft password` makes one; give it to every peer."
        ),
        Some(password) if strength_bits(password.as_str()) < WEAK_BITS => eprintln!(
            "weft: this password can be guessed by somebody who gets a router to dial them. `weft password` makes a better one."
        ),
        Some(_) => {}
    }
}

#[expect(
    clippy::print_stderr,
    reason = "the caller of `weft launch` reads this"
)]
fn warn_of_copy(kept: Option<&str>) {
    if let Some(kept) = kept {
        eprintln!(
            "weft: the state found here is another host's, copied with its disk: this is a new peer that owns nothing. The copy is kept as {kept}."
        );
    }
}

/// Below this many bits a password is said to be weak (mechanics of the Argon2id settings in use:
/// about 2^26 guesses a day and core).
const WEAK_BITS: f64 = 60.0;

/// How many bits a password of random characters of the kinds it uses would have; words have less.
fn strength_bits(password: &str) -> f64 {
    type Kind = fn(char) -> bool;
    let kinds: [(Kind, u32); 4] = [
        (|c| c.is_ascii_lowercase(), 26),
        (|c| c.is_ascii_uppercase(), 26),
        (|c| c.is_ascii_digit(), 10),
        (|c| !c.is_ascii_alphanumeric(), 32),
    ];
    let alphabet: u32 = kinds
        .iter()
        .filter(|(is, _)| password.chars().any(is))
        .map(|(_, n)| n)
        .sum();
    let length = u32::try_from(password.chars().count()).unwrap_or(u32::MAX);
    f64::from(length) * f64::from(alphabet.max(1)).log2()
}

#[expect(
    clippy::print_stdout,
    reason = "what `weft launch` prints is its result"
)]
fn say(global: &GlobalArgs, name: &PeerName) {
    if global.json {
        println!("{}", serde_json::json!({ "name": name.to_string() }));
    } else {
        println!("{name}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_and_its_value_are_left_out() {
        let args = |list: &[&str]| list.iter().map(OsString::from).collect::<Vec<_>>();
        let given = args(&[
            "launch",
            "--password",
            "x",
            "--password=y",
            "--password-file",
            "f",
            "h",
            "--",
            "--password",
            "z",
        ]);
        let kept = args(&[
            "launch",
            "--password-file",
            "f",
            "h",
            "--",
            "--password",
            "z",
        ]);
        assert_eq!(without(&["--password"], &given), kept);
        let kept = args(&[
            "launch",
            "--password",
            "x",
            "--password=y",
            "h",
            "--",
            "--password",
            "z",
        ]);
        assert_eq!(without(&["--password-file"], &given), kept);
    }

    #[test]
    fn short_and_simple_passwords_are_weak() {
        assert!(strength_bits("wEaVe123") < WEAK_BITS);
        assert!(strength_bits("correcthorse") < WEAK_BITS);
        assert!(strength_bits("4f9b2c1e8d7a6b5c4f9b2c1e8d7a6b5c") > 128.0);
        assert!(strength_bits("") < WEAK_BITS);
    }

    #[test]
    fn the_childs_last_words_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOG);
        fs::write(&path, "old\nweft: error: old\n").unwrap();
        let from = fs::metadata(&path).unwrap().len();
        assert_eq!(last_error(&path, from), None);
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str(
            "INFO starting\nweft: error: cannot listen on TCP port 6783\n  because of this\n",
        );
        fs::write(&path, text).unwrap();
        let said = last_error(&path, from).unwrap();
        assert_eq!(said, "cannot listen on TCP port 6783\n  because of this");
    }
}
