//! A lab that is up, as seen by the commands that use it: where its places are and how to run
//! something there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use weft_net::sandbox;

use super::birth::OURSELVES;
use super::layout::{Layout, Place};
use super::process;
use super::state::{LabDir, LabName, Record};

/// A lab that is up.
#[derive(Debug, Clone)]
pub(crate) struct Lab {
    name: LabName,
    record: Record,
}

impl Lab {
    /// The lab of this record.
    pub(crate) fn new(name: LabName, record: Record) -> Self {
        Self { name, record }
    }

    /// The lab of this name.
    ///
    /// # Errors
    /// If it is not up.
    pub(crate) fn find(name: &LabName) -> Result<Self> {
        match LabDir::of(name).running()? {
            Some(record) => Ok(Self::new(name.clone(), record)),
            None => bail!(
                "{} is not up: bring it up with `weft lab up`",
                name.in_words()
            ),
        }
    }

    /// What it consists of.
    pub(crate) fn layout(&self) -> Layout {
        self.record.layout
    }

    /// Its process number 1, as seen from outside.
    pub(crate) fn pid(&self) -> u32 {
        self.record.pid
    }

    /// The process number 1 of a place, as seen from outside.
    ///
    /// # Errors
    /// If there is no such place, or no longer.
    pub(crate) fn holder(&self, place: Place) -> Result<u32> {
        if !self.layout().has(place) {
            bail!(
                "{} has no {place}: it has {}",
                self.name.in_words(),
                self.layout()
            );
        }
        process::holder(self.pid(), place)
            .with_context(|| format!("{place} is gone: take the lab down and up again"))
    }

    /// A command that runs `words` in a place; its exit status and standard streams are theirs.
    pub(crate) fn command(&self, place: Place, words: &[&str]) -> Command {
        let mut command = Command::new(OURSELVES);
        let name = self.name.to_string();
        command
            .args(["lab", "exec", "--name", &name, &place.to_string(), "--"])
            .args(words);
        command
    }

    /// Starts `words` in a place without input, its output to be waited for.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub(crate) fn start(&self, place: Place, words: &[&str]) -> Result<Started> {
        let mut command = self.command(place, words);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = command
            .spawn()
            .context("cannot start the weft program again")?;
        Ok(Started {
            place,
            words: words.join(" "),
            child,
            within: PATIENCE,
        })
    }

    /// Runs `words` in a place and gives back what they print.
    ///
    /// # Errors
    /// If they fail, with what they said.
    pub(crate) fn run(&self, place: Place, words: &[&str]) -> Result<String> {
        self.start(place, words)?.finish()
    }

    /// The last lines of what the routers log, host by host; empty if they log nothing.
    pub(crate) fn router_logs(&self) -> String {
        let mut text = String::new();
        for host in self.layout().hosts() {
            let Ok(pid) = self.holder(host) else { continue };
            for path in logs_below(Path::new(&format!("/proc/{pid}/root"))) {
                text += &format!("--- {host}: {}\n{}", path.display(), tail(&path));
            }
        }
        text
    }
}

/// Something that runs in a place.
#[derive(Debug)]
pub(crate) struct Started {
    place: Place,
    words: String,
    child: Child,
    within: Duration,
}

/// How long anything the lab runs for its own ends may take.
const PATIENCE: Duration = Duration::from_secs(90);

impl Started {
    /// Waits for its end and gives back what it printed.
    ///
    /// # Errors
    /// If it failed, with what it said.
    pub(crate) fn finish(self) -> Result<String> {
        let (place, words) = (self.place, self.words.clone());
        let (success, printed, said) = self.outcome()?;
        if success {
            return Ok(printed);
        }
        let said = if said.trim().is_empty() {
            printed
        } else {
            said
        };
        bail!("`{words}` on {place} failed: {}", said.trim())
    }

    /// Waits for its end: whether it succeeded, what it printed, and what it said to standard error.
    ///
    /// # Errors
    /// If it cannot be waited for, or takes too long and had to be ended.
    pub(crate) fn outcome(self) -> Result<(bool, String, String)> {
        let Self {
            place,
            words,
            child,
            within,
        } = self;
        let (done, waiting) = mpsc::channel::<()>();
        let pid = child.id();
        let watchdog = thread::spawn(move || {
            let late = waiting.recv_timeout(within) == Err(RecvTimeoutError::Timeout);
            // What it runs is asked to end too; it is gone already if this fails.
            late && sandbox::send_signal(pid, sandbox::TERMINATE).is_ok()
        });
        let output = child
            .wait_with_output()
            .with_context(|| format!("cannot wait for `{words}`"))?;
        drop(done);
        if watchdog.join().unwrap_or(false) {
            bail!(
                "`{words}` on {place} did not end within {} s",
                within.as_secs()
            );
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((
            output.status.success(),
            text(&output.stdout),
            text(&output.stderr),
        ))
    }
}

/// Where a router may log.
const LOG_FOLDERS: [&str; 3] = ["run/weft", "var/lib/weft", "var/log/weft"];
/// How much of a log is shown.
const TAIL_LINES: usize = 20;

fn logs_below(root: &Path) -> Vec<PathBuf> {
    let entries = LOG_FOLDERS
        .iter()
        .filter_map(|folder| fs::read_dir(root.join(folder)).ok());
    let mut found: Vec<_> = entries
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    found.sort();
    found
}

fn tail(path: &Path) -> String {
    let text = fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    let last = lines.iter().skip(lines.len().saturating_sub(TAIL_LINES));
    last.map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(script: &str, within: Duration) -> Started {
        let mut command = Command::new("sh");
        command
            .args(["-c", script])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        Started {
            place: Place::Host(1),
            words: script.to_owned(),
            child,
            within,
        }
    }

    #[test]
    fn what_takes_too_long_is_ended() {
        let begin = std::time::Instant::now();
        let error = started("exec sleep 60", Duration::from_millis(50))
            .finish()
            .unwrap_err();
        assert!(
            error.to_string().contains("on host1 did not end within"),
            "{error}"
        );
        assert!(begin.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn what_fails_is_told_in_its_own_words() {
        let error = started("echo out; echo why >&2; exit 3", PATIENCE)
            .finish()
            .unwrap_err();
        assert!(
            error.to_string().ends_with("on host1 failed: why"),
            "{error}"
        );
        let error = started("echo out; exit 3", PATIENCE).finish().unwrap_err();
        assert!(error.to_string().ends_with("failed: out"), "{error}");
        assert_eq!(
            started("echo out; echo why >&2", PATIENCE)
                .finish()
                .unwrap(),
            "out\n"
        );
    }

    #[test]
    fn only_the_end_of_a_log_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("run/weft")).unwrap();
        let path = folder.path().join("run/weft/weft.log");
        fs::write(
            &path,
            (1..=50).map(|n| format!("line {n}\n")).collect::<String>(),
        )
        .unwrap();
        fs::write(folder.path().join("run/weft/weft.pid"), "1").unwrap();
        assert_eq!(logs_below(folder.path()), [path.as_path()]);
        let shown = tail(&path);
        assert!(shown.starts_with("line 31\n") && shown.ends_with("line 50\n"));
        assert_eq!(tail(Path::new("/nowhere")), "");
    }
}
