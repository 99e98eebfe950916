//! `weft-runc`: an OCI runtime that attaches what it starts, and is runc in all else.
//!
//! ```text
//!   dockerd -> containerd -> weft-runc create -> runc create -> [hook: weft hook attach] -> first process
//!                                  |                                     |
//!                          adds two hooks to                     address, ethwe, names;
//!                          the bundle's config.json              a failure fails the start
//! ```
//! It is called for every step in a container's life, so it does next to nothing: of all commands but
//! `create` not even the arguments are looked at twice. It never changes an argument. A container
//! that has another's network, or the host's, is none of our business.
//!
//! Settings come by the environment, which runc passes on from dockerd: `WEFT_SOCKET` the router's
//! control socket, `WEFT_RUNC` the runc to call.

pub(crate) mod bundle;
mod command;
pub mod hook;
mod record;
pub(crate) mod resolv_conf;

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use thiserror::Error;

pub use bundle::{Bundle, BundleError};
use command::RuncCommand;

/// The name under which the program is this runtime.
pub const NAME: &str = "weft-runc";

/// Why a container cannot be created.
#[derive(Debug, Error)]
enum RuntimeError {
    #[error("{0}")]
    Bundle(#[from] BundleError),
    #[error("cannot tell where the weft program is: {0}")]
    Program(#[source] io::Error),
    #[error(
        "there is no runc in PATH or the usual directories: install runc, or set WEFT_RUNC in dockerd's environment"
    )]
    NoRunc,
    #[error("cannot start {}: {source}", runc.display())]
    Exec { runc: PathBuf, source: io::Error },
}

/// Runs runc with these arguments, the program's name not among them. Comes back only if that fails.
pub fn run(arguments: &[OsString]) -> ExitCode {
    let command = RuncCommand::parse(arguments);
    let error = match prepare(&command).and_then(|()| runc()) {
        Ok(runc) => {
            let source = Command::new(&runc).args(arguments).exec();
            RuntimeError::Exec { runc, source }
        }
        Err(error) => error,
    };
    say(&command, &error);
    ExitCode::FAILURE
}

fn prepare(command: &RuncCommand) -> Result<(), RuntimeError> {
    let Some(dir) = command.creates_from() else {
        return Ok(());
    };
    let mut bundle = Bundle::open(dir)?;
    if bundle.wants_network() {
        let program = env::current_exe().map_err(RuntimeError::Program)?;
        bundle.add_hooks(&program, env::var_os(SOCKET).as_deref());
        bundle.save()?;
    }
    Ok(())
}

/// Tells why, on standard error, and as runc does in its log: containerd shows what is there last.
fn say(command: &RuncCommand, error: &RuntimeError) {
    let _ = writeln!(io::stderr(), "weft: {error}");
    if let Some(log) = command.log() {
        let line = serde_json::json!({ "level": "error", "msg": format!("weft: {error}") });
        let open = File::options().create(true).append(true).open(log);
        let _ = open.and_then(|mut file| writeln!(file, "{line}"));
    }
}

/// The real runc: what `WEFT_RUNC` says, or the first in PATH that is not this program.
fn runc() -> Result<PathBuf, RuntimeError> {
    if let Some(runc) = env::var_os("WEFT_RUNC").filter(|path| !path.is_empty()) {
        return Ok(PathBuf::from(runc));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let own = fs::metadata("/proc/self/exe").ok();
    let own = own.map(|own| (own.dev(), own.ino()));
    find_runc(&path, own).ok_or(RuntimeError::NoRunc)
}

fn find_runc(path: &OsStr, own: Option<(u64, u64)>) -> Option<PathBuf> {
    let usual = USUAL_DIRS.iter().map(PathBuf::from);
    let candidates = env::split_paths(path)
        .chain(usual)
        .map(|dir| dir.join("runc"));
    candidates
        .into_iter()
        .find(|candidate| is_other_program(candidate, own))
}

fn is_other_program(path: &Path, own: Option<(u64, u64)>) -> bool {
    fs::metadata(path).is_ok_and(|meta| {
        let runs = meta.is_file() && meta.permissions().mode() & 0o111 != 0;
        runs && Some((meta.dev(), meta.ino())) != own
    })
}

const SOCKET: &str = "WEFT_SOCKET";
/// Where runc is when PATH does not lead to it: dockerd may run with next to no environment.
const USUAL_DIRS: [&str; 5] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runc_is_found_in_path_and_never_ourselves() {
        let dir = tempfile::TempDir::new().unwrap();
        let place = |name: &str, mode: u32| {
            let at = dir.path().join(name);
            fs::create_dir(&at).unwrap();
            let file = at.join("runc");
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            file
        };
        let (no_program, us, real) = (place("a", 0o644), place("b", 0o755), place("c", 0o755));
        let dirs = [&no_program, &us, &real].map(|file| file.parent().unwrap().to_owned());
        let path = env::join_paths(dirs).unwrap();
        let own = fs::metadata(&us).unwrap();
        assert_eq!(find_runc(&path, Some((own.dev(), own.ino()))), Some(real));
        assert_eq!(find_runc(&path, None), Some(us));
    }

    #[test]
    fn a_failure_is_written_where_containerd_looks() {
        let dir = tempfile::TempDir::new().unwrap();
        let log = dir.path().join("log.json");
        let arguments = [
            "--log",
            log.to_str().unwrap(),
            "create",
            "--bundle",
            "/nonexistent",
            "c1",
        ];
        let arguments = arguments.map(OsString::from);
        let command = RuncCommand::parse(&arguments);
        let error = prepare(&command).unwrap_err();
        say(&command, &error);
        let said: serde_json::Value = serde_json::from_slice(&fs::read(&log).unwrap()).unwrap();
        let message = said["msg"].as_str().unwrap();
        assert!(
            message.starts_with("weft: cannot read /nonexistent/config.json"),
            "{message}"
        );
        assert_eq!(said["level"], "error");
    }
}
