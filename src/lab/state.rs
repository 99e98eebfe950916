//! What a lab leaves on disk while it is up: a directory with its record and its log.
//!
//! `/run/weft-lab/NAME` for root, else below `$XDG_RUNTIME_DIR`, else `/tmp/weft-lab-UID/NAME`. The
//! directory is locked by whoever brings a lab up or takes it down. The record names the lab's
//! process number 1 with its start and the machine's boot, so that what a crash left behind is told
//! from a lab that lives.
//!
//! Invariant: nothing of a lab lives outside its processes and this directory.

use std::fs::{self, File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};
use std::{env, fmt, thread};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use weft_net::sandbox;

use super::layout::Layout;
use super::process;

/// Version of the record's format; a record of another version is not ours to judge.
const FORMAT: u32 = 1;
const RECORD: &str = "lab.json";
const LOG: &str = "lab.log";
/// How long the kernel may take to end all processes of a lab.
const END_WITHIN: Duration = Duration::from_secs(10);

/// Which lab, where several are up at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LabName(String);

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl LabName {
    /// Whether it is the one that needs not be given.
    pub(crate) fn is_default(&self) -> bool {
        self.0 == super::DEFAULT_NAME
    }

    /// The lab in a sentence: "the lab", or "lab NAME".
    pub(crate) fn in_words(&self) -> String {
        if self.is_default() {
            "the lab".to_owned()
        } else {
            format!("lab {self}")
        }
    }
}

/// Text that cannot name a lab.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} cannot name a lab: use 1 to 32 of a-z, 0-9 and -")]
pub(crate) struct ParseLabNameError(String);

impl FromStr for LabName {
    type Err = ParseLabNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = (1..=32).contains(&text.len())
            && text
                .bytes()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-');
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseLabNameError(text.to_owned()))
        }
    }
}

/// The record of a lab that is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    format: u32,
    /// The boot it was made in.
    boot: String,
    /// Its process number 1, as seen from outside.
    pub(crate) pid: u32,
    /// When that started, in clock ticks since boot.
    started: u64,
    /// What it consists of.
    pub(crate) layout: Layout,
}

impl Record {
    /// The record of a lab whose process number 1 is `pid`; none if that is gone already.
    pub(crate) fn of(pid: u32, layout: Layout) -> Option<Self> {
        let started = process::started(pid)?;
        Some(Self {
            format: FORMAT,
            boot: boot(),
            pid,
            started,
            layout,
        })
    }

    /// Whether the lab's processes are there.
    pub(crate) fn lives(&self) -> bool {
        self.format == FORMAT
            && self.boot == boot()
            && process::started(self.pid) == Some(self.started)
    }

    /// Ends all processes of the lab and waits until they are gone.
    ///
    /// # Errors
    /// If they are not ours to end or stay.
    pub(crate) fn end(&self) -> Result<(), StateError> {
        if !self.lives() {
            return Ok(());
        }
        let io = |source| StateError::Io {
            action: "end",
            path: PathBuf::from(format!("process {}", self.pid)),
            source,
        };
        sandbox::kill_now(self.pid).map_err(io)?;
        let deadline = Instant::now() + END_WITHIN;
        while self.lives() {
            if Instant::now() > deadline {
                return Err(StateError::Lingers { pid: self.pid });
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Why the lab's directory cannot be used.
#[derive(Debug, Error)]
pub(crate) enum StateError {
    /// A file or directory refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// How it failed.
        source: io::Error,
    },
    /// It belongs to somebody else, who could put links to our files there.
    #[error("{} belongs to another user: remove it, or set XDG_RUNTIME_DIR to a directory of yours", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// Another command works on this lab.
    #[error("another `weft lab` command is at work on lab {name}: wait until it is done")]
    Busy {
        /// The lab.
        name: LabName,
    },
    /// The record is not what we wrote.
    #[error("the record {} is damaged ({source}): remove the directory it is in, once no `weft lab` process runs", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The lab's processes do not end.
    #[error(
        "process {pid} of the lab does not end though it was killed: see what it waits for in /proc/{pid}/stack"
    )]
    Lingers {
        /// The lab's process number 1.
        pid: u32,
    },
}

/// The directory of a lab.
#[derive(Debug, Clone)]
pub(crate) struct LabDir {
    name: LabName,
    path: PathBuf,
}

impl LabDir {
    /// The directory of the lab of this name, there or not.
    pub(crate) fn of(name: &LabName) -> Self {
        let user = sandbox::user_id();
        let path = base(user, runtime(user)).join(&name.0);
        Self {
            name: name.clone(),
            path,
        }
    }

    /// Where the lab's own processes write what goes wrong.
    pub(crate) fn log(&self) -> PathBuf {
        self.path.join(LOG)
    }

    /// The record of the lab, if one is up.
    ///
    /// # Errors
    /// [`StateError::Damaged`], [`StateError::Io`].
    pub(crate) fn running(&self) -> Result<Option<Record>, StateError> {
        let path = self.path.join(RECORD);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(StateError::Io {
                    action: "read",
                    path,
                    source,
                });
            }
        };
        let record: Record =
            serde_json::from_slice(&text).map_err(|source| StateError::Damaged { path, source })?;
        Ok(record.lives().then_some(record))
    }

    /// Makes the directory and locks it.
    ///
    /// # Errors
    /// [`StateError::Busy`] if somebody else has; [`StateError::Foreign`], [`StateError::Io`].
    pub(crate) fn lock(&self) -> Result<LockedDir, StateError> {
        loop {
            self.make()?;
            let lock = File::open(&self.path).map_err(self.io("open"))?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(StateError::Busy {
                        name: self.name.clone(),
                    });
                }
                Err(TryLockError::Error(source)) => return Err(self.io("lock")(source)),
            }
            // The one who had it before us may have removed it: then ours is a lock on nothing.
            let locked = lock.metadata().map_err(self.io("look at"))?;
            if fs::metadata(&self.path)
                .is_ok_and(|there| (there.dev(), there.ino()) == (locked.dev(), locked.ino()))
            {
                return Ok(LockedDir {
                    dir: self.clone(),
                    _lock: lock,
                });
            }
        }
    }

    /// Removes the directory and all in it; for whoever holds its lock.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub(crate) fn remove(&self) -> Result<(), StateError> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(self.io("remove")(error));
            }
            Ok(()) | Err(_) => {}
        }
        if let Some(base) = self.path.parent() {
            // Other labs may be in it.
            let _ = fs::remove_dir(base);
        }
        Ok(())
    }

    fn make(&self) -> Result<(), StateError> {
        for path in [self.path.parent(), Some(&self.path)].into_iter().flatten() {
            match fs::create_dir(path) {
                Ok(()) => fs::set_permissions(path, Permissions::from_mode(0o700))
                    .map_err(self.io("restrict"))?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                // Whoever takes another lab down may remove the directory above under our feet.
                Err(error) if error.kind() == io::ErrorKind::NotFound && path == self.path => {
                    return self.make();
                }
                Err(source) => {
                    return Err(StateError::Io {
                        action: "make",
                        path: path.to_owned(),
                        source,
                    });
                }
            }
            check_ours(path)?;
        }
        Ok(())
    }

    fn io(&self, action: &'static str) -> impl FnOnce(io::Error) -> StateError {
        let path = self.path.clone();
        move |source| StateError::Io {
            action,
            path,
            source,
        }
    }
}

/// `/tmp` is everybody's, so what is there may be another's trap.
fn check_ours(path: &Path) -> Result<(), StateError> {
    let io = |source| StateError::Io {
        action: "look at",
        path: path.to_owned(),
        source,
    };
    let there = fs::symlink_metadata(path).map_err(io)?;
    if there.is_dir() && there.uid() == sandbox::user_id() {
        Ok(())
    } else {
        Err(StateError::Foreign {
            path: path.to_owned(),
        })
    }
}

/// The directory the login gave us, if it is there and ours: `su` passes on that of another.
fn runtime(user: u32) -> Option<PathBuf> {
    let path = PathBuf::from(env::var_os("XDG_RUNTIME_DIR")?);
    let ours = fs::metadata(&path).is_ok_and(|there| there.is_dir() && there.uid() == user);
    (path.is_absolute() && ours).then_some(path)
}

fn base(user: u32, runtime: Option<PathBuf>) -> PathBuf {
    match runtime {
        _ if user == 0 => PathBuf::from("/run/weft-lab"),
        Some(runtime) => runtime.join("weft-lab"),
        None => PathBuf::from(format!("/tmp/weft-lab-{user}")),
    }
}

/// The directory of a lab, held by us alone.
#[derive(Debug)]
pub(crate) struct LockedDir {
    dir: LabDir,
    _lock: File,
}

impl LockedDir {
    /// The directory.
    pub(crate) fn dir(&self) -> &LabDir {
        &self.dir
    }

    /// Keeps the record of a lab that comes up.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub(crate) fn keep(&self, record: &Record) -> Result<(), StateError> {
        // To a new file and then renamed: a reader sees all of it or nothing.
        let (new, path) = (
            self.dir.path.join("lab.json.new"),
            self.dir.path.join(RECORD),
        );
        serde_json::to_vec(record)
            .map_err(io::Error::from)
            .and_then(|text| fs::write(&new, text))
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|source| StateError::Io {
                action: "write",
                path,
                source,
            })
    }

    /// Makes an empty log.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub(crate) fn new_log(&self) -> Result<File, StateError> {
        let path = self.dir.log();
        File::create(&path).map_err(|source| StateError::Io {
            action: "make",
            path,
            source,
        })
    }

    /// Removes the directory and all in it.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub(crate) fn remove(self) -> Result<(), StateError> {
        self.dir.remove()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout {
        hosts: 2,
        containers: 1,
    };

    fn dir_in(folder: &Path) -> LabDir {
        LabDir {
            name: "t".parse().unwrap(),
            path: folder.join("weft-lab").join("t"),
        }
    }

    #[test]
    fn names_of_labs_are_plain() {
        assert!("ci-7".parse::<LabName>().is_ok());
        for text in ["", "..", "a/b", "A", "a b", &"x".repeat(33)] {
            assert!(text.parse::<LabName>().is_err(), "{text}");
        }
    }

    #[test]
    fn root_and_others_have_places_of_their_own() {
        assert_eq!(
            base(0, Some("/run/user/0".into())),
            Path::new("/run/weft-lab")
        );
        assert_eq!(
            base(7, Some("/run/user/7".into())),
            Path::new("/run/user/7/weft-lab")
        );
        assert_eq!(base(7, None), Path::new("/tmp/weft-lab-7"));
    }

    #[test]
    fn a_record_is_of_one_run_of_one_process() {
        let us = Record::of(std::process::id(), LAYOUT).unwrap();
        assert!(us.lives());
        assert!(
            !Record {
                started: us.started + 1,
                ..us.clone()
            }
            .lives()
        );
        assert!(
            !Record {
                boot: "another".to_owned(),
                ..us.clone()
            }
            .lives()
        );
        assert!(
            !Record {
                format: FORMAT + 1,
                ..us
            }
            .lives()
        );
        assert!(Record::of(u32::MAX, LAYOUT).is_none());
    }

    #[test]
    fn what_is_kept_is_found_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let dir = dir_in(folder.path());
        assert_eq!(dir.running().unwrap(), None);
        let locked = dir.lock().unwrap();
        let us = Record::of(std::process::id(), LAYOUT).unwrap();
        locked.keep(&us).unwrap();
        assert_eq!(dir.running().unwrap(), Some(us));
        locked.remove().unwrap();
        assert_eq!(dir.running().unwrap(), None);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_lab_that_crashed_does_not_run() {
        let folder = tempfile::tempdir().unwrap();
        let dir = dir_in(folder.path());
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let record = Record::of(child.id(), LAYOUT).unwrap();
        dir.lock().unwrap().keep(&record).unwrap();
        assert_eq!(dir.running().unwrap(), Some(record.clone()));
        record.end().unwrap();
        assert_eq!(dir.running().unwrap(), None);
        child.wait().unwrap();
    }

    #[test]
    fn two_cannot_hold_one_lab() {
        let folder = tempfile::tempdir().unwrap();
        let dir = dir_in(folder.path());
        let held = dir.lock().unwrap();
        assert!(matches!(dir.lock(), Err(StateError::Busy { .. })));
        drop(held);
        assert!(dir.lock().is_ok());
    }

    #[test]
    fn half_a_record_is_damaged_not_absent() {
        let folder = tempfile::tempdir().unwrap();
        let dir = dir_in(folder.path());
        let _held = dir.lock().unwrap();
        fs::write(dir.path.join(RECORD), "{\"format\":1,").unwrap();
        assert!(matches!(dir.running(), Err(StateError::Damaged { .. })));
    }

    #[test]
    fn a_link_in_the_place_of_the_directory_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), folder.path().join("weft-lab")).unwrap();
        assert!(matches!(
            dir_in(folder.path()).lock(),
            Err(StateError::Foreign { .. })
        ));
    }
}
