//! Running a program to its end, with a deadline, and waiting for a condition instead of for a while.

use std::fmt::Display;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long any one command may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How long a change may take to be known everywhere.
pub(crate) const SOON: Duration = Duration::from_secs(20);

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

    /// What it said on standard error, if it failed.
    #[track_caller]
    pub(crate) fn failure(self) -> String {
        assert!(self.code.is_some_and(|code| code != 0), "{self:?}");
        self.said
    }
}

/// Runs a command to its end; one that does not end in time is killed, which fails the scenario.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Outcome {
    run_within(PATIENCE, command)
}

/// Runs a command to its end within this time.
#[track_caller]
pub(crate) fn run_within(patience: Duration, command: &mut Command) -> Outcome {
    let piped = command.stdin(Stdio::null()).stdout(Stdio::piped());
    let child = piped.stderr(Stdio::piped()).spawn();
    let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let pid = child.id();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    let Ok(output) = receiver.recv_timeout(patience) else {
        let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        panic!("{command:?} did not end within {patience:?}");
    };
    let output = output.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Outcome {
        code: output.status.code(),
        printed: text(&output.stdout),
        said: text(&output.stderr),
    }
}

/// A command of words.
pub(crate) fn words(words: &[&str]) -> Command {
    let (program, arguments) = words.split_first().unwrap();
    let mut command = Command::new(program);
    command.args(arguments);
    command
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
