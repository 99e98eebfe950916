//! `weft lab exec`: runs a command in a place, with our standard streams and its exit status.
//!
//! This process joins the place's namespaces and starts the command, which thus is in its pid
//! namespace too; then it waits. What it is asked to end by, the command is asked to end by.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::{env, io};

use anyhow::{Context, Result};
use weft_net::sandbox::{Caught, NamespacesOf, Signals, send_signal, with_open_signals};

use super::furnish::BIN;
use super::layout::Place;
use super::running::Lab;
use super::state::LabName;
use super::{process, say};

/// Run a command on a host, in a container, or on the virtual LAN
///
/// The exit status is the command's; 125 if the lab is not up or has no such place, 126 if the
/// command cannot be run, 127 if there is none of that name, 128 + N if signal N ended it.
/// WEFT_* variables (but WEFT_PASSWORD) are not passed on: they are about this machine.
#[derive(Debug, clap::Args)]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    pub(crate) lab: super::NameArgs,
    /// host1, host2, …; c1, c2, …; or lan
    place: Place,
    /// The command; a shell if none is given
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    pub(crate) command: Vec<OsString>,
}

/// The command did not get as far as being run.
const FAILED: u8 = 125;
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Runs `weft lab exec`.
pub(crate) fn run(args: &ExecArgs) -> ExitCode {
    let result = join(&args.lab.name, args.place).and_then(|()| run_here(&args.command));
    result.unwrap_or_else(|error| {
        say::progress(&format!("weft lab exec: {error:#}"));
        ExitCode::from(FAILED)
    })
}

fn join(name: &LabName, place: Place) -> Result<()> {
    let lab = Lab::find(name)?;
    let folder = env::current_dir().ok();
    let pid = lab.holder(place)?;
    let started = process::started(pid);
    let namespaces = NamespacesOf::open(pid)?;
    // Held open now: if it is still the same process, they were its namespaces.
    anyhow::ensure!(
        started.is_some() && process::started(pid) == started,
        "{place} has just gone"
    );
    namespaces.join()?;
    if folder.is_none_or(|folder| env::set_current_dir(folder).is_err()) {
        env::set_current_dir("/").context("cannot go to /")?;
    }
    Ok(())
}

fn run_here(words: &[OsString]) -> Result<ExitCode> {
    let shell = [OsString::from("sh")];
    let words = if words.is_empty() {
        shell.as_slice()
    } else {
        words
    };
    let (program, arguments) = words.split_first().context("no command")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("PATH", path(env::var_os("PATH")));
    for (name, _) in env::vars_os().filter(|(name, _)| is_of_this_machine(name)) {
        command.env_remove(name);
    }
    // The Docker of this machine, if there is one, is not the emulated host's.
    command.env("WEFT_NO_PLUGIN", "true");
    with_open_signals(&mut command);
    let signals = Signals::hold().context("cannot hold back signals")?;
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            say::progress(&format!(
                "weft lab exec: cannot run {}: {error}",
                Path::new(program).display()
            ));
            let not_found = error.kind() == io::ErrorKind::NotFound;
            return Ok(ExitCode::from(if not_found {
                NOT_FOUND
            } else {
                CANNOT_RUN
            }));
        }
    };
    wait(child, &signals).map(exit_code)
}

/// The weft program first, then what the caller has.
fn path(callers: Option<OsString>) -> OsString {
    let mut path = OsString::from(BIN);
    path.push(":");
    path.push(
        callers.unwrap_or_else(|| {
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()
        }),
    );
    path
}

fn is_of_this_machine(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b"WEFT_") && name != "WEFT_PASSWORD"
}

fn wait(mut child: Child, signals: &Signals) -> Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for the command")? {
            return Ok(status);
        }
        match signals.next().context("cannot wait for signals")? {
            Caught::Child | Caught::Keyboard => {}
            Caught::End(signal) => {
                send_signal(child.id(), signal).context("cannot pass a signal on")?
            }
        }
    }
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(
        code.and_then(|code| u8::try_from(code).ok())
            .unwrap_or(FAILED),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_password_is_passed_on() {
        assert!(
            is_of_this_machine("WEFT_SOCKET".as_ref()) && is_of_this_machine("WEFT_LAB".as_ref())
        );
        assert!(
            !is_of_this_machine("WEFT_PASSWORD".as_ref()) && !is_of_this_machine("HOME".as_ref())
        );
    }

    #[test]
    fn the_weft_program_is_found_first() {
        assert_eq!(
            path(Some("/a:/b".into())),
            OsString::from("/run/lab/bin:/a:/b")
        );
        assert!(path(None).to_string_lossy().ends_with(":/bin"));
    }

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        let same =
            |status: ExitStatus, code: u8| assert_eq!(exit_code(status), ExitCode::from(code));
        same(ExitStatus::from_raw(0), 0);
        same(ExitStatus::from_raw(7 << 8), 7);
        same(ExitStatus::from_raw(9), 137);
    }
}
