//! Processes in namespaces of their own: what `weft lab` emulates hosts with.
//!
//! A process makes or joins namespaces by itself, right after its start and while it has a single
//! thread, and starts its children afterwards; nothing here forks. A new pid namespace holds the
//! *children* of the process that made it, so a caller that wants to live in one starts itself
//! again. In a new user namespace the caller is root over all that it makes there, and nobody
//! outside.
//!
//! Invariant: mounts made here are never seen by the mount namespace we came from
//! ([`cut_off_mounts`] comes first).
#![allow(unsafe_code)]

use std::convert::Infallible;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getegid, geteuid, sethostname, setsid};
use thiserror::Error;

use crate::capability::{SYS_ADMIN, holds};

/// A kind of namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    /// Who is root.
    User,
    /// Mounts.
    Mount,
    /// Host name.
    Hostname,
    /// Links, addresses, routes, sockets.
    Network,
    /// Process numbers; holds the children of whoever makes or joins it.
    Process,
}

impl Namespace {
    /// All kinds, in the order to join them: the user namespace gives the right to join the rest.
    pub const ALL: [Self; 5] = [
        Self::User,
        Self::Network,
        Self::Hostname,
        Self::Process,
        Self::Mount,
    ];

    const fn flag(self) -> CloneFlags {
        match self {
            Self::User => CloneFlags::CLONE_NEWUSER,
            Self::Mount => CloneFlags::CLONE_NEWNS,
            Self::Hostname => CloneFlags::CLONE_NEWUTS,
            Self::Network => CloneFlags::CLONE_NEWNET,
            Self::Process => CloneFlags::CLONE_NEWPID,
        }
    }

    const fn file(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Mount => "mnt",
            Self::Hostname => "uts",
            Self::Network => "net",
            Self::Process => "pid",
        }
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "user",
            Self::Mount => "mount",
            Self::Hostname => "host name",
            Self::Network => "network",
            Self::Process => "process",
        })
    }
}

/// Why a namespace cannot be made or joined, or a mount not be made.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// The system does not let us make namespaces.
    #[error(
        "this system does not let us make namespaces ({0}){remedy}",
        remedy = remedy(io::ErrorKind::PermissionDenied)
    )]
    Forbidden(Errno),
    /// There are as many as the system allows.
    #[error(
        "there are too many namespaces already ({0}): raise `sysctl user.max_user_namespaces`, \
         `user.max_net_namespaces` and `user.max_mnt_namespaces`"
    )]
    TooMany(Errno),
    /// Making them failed otherwise.
    #[error("cannot make namespaces: {0}")]
    Unshare(Errno),
    /// A namespace of a process cannot be joined.
    #[error("cannot join the {kind} namespace of process {pid}: {source}")]
    Join {
        /// The kind of namespace.
        kind: Namespace,
        /// Whose.
        pid: u32,
        /// How it failed.
        source: io::Error,
    },
    /// Something could not be mounted.
    #[error("cannot mount {what} on {target}: {source}{}", remedy(.source.kind()))]
    Mount {
        /// The thing.
        what: String,
        /// The place.
        target: PathBuf,
        /// How it failed.
        source: io::Error,
    },
    /// A file of the kernel could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: &'static str,
        /// How it failed.
        source: io::Error,
    },
    /// The host name was refused.
    #[error("cannot set the host name {name:?}: {source}")]
    Hostname {
        /// The name.
        name: String,
        /// How it failed.
        source: io::Error,
    },
}

/// Some systems refuse to make namespaces, others only to do anything in them.
fn remedy(kind: io::ErrorKind) -> &'static str {
    if kind == io::ErrorKind::PermissionDenied {
        "; run as root, or let everybody have namespaces: `sysctl kernel.unprivileged_userns_clone=1` \
         (Debian), `sysctl kernel.apparmor_restrict_unprivileged_userns=0` (Ubuntu); \
         in a container, start it with --privileged"
    } else {
        ""
    }
}

/// Moves this process (for [`Namespace::Process`]: its children) into new namespaces.
///
/// With [`Namespace::User`] the process becomes root in the new user namespace; that needs a
/// process of one thread.
///
/// # Errors
/// [`SandboxError::Forbidden`] and [`SandboxError::TooMany`] say what to change on the system.
pub fn make_namespaces(kinds: &[Namespace]) -> Result<(), SandboxError> {
    let (user, group) = (geteuid(), getegid());
    let flags = kinds
        .iter()
        .fold(CloneFlags::empty(), |all, kind| all | kind.flag());
    unshare(flags).map_err(unshare_error)?;
    if kinds.contains(&Namespace::User) {
        // The order is the kernel's: groups are mapped only once they can no longer be changed.
        write("/proc/self/setgroups", "deny")?;
        write("/proc/self/uid_map", &format!("0 {user} 1"))?;
        write("/proc/self/gid_map", &format!("0 {group} 1"))?;
    }
    Ok(())
}

fn unshare_error(errno: Errno) -> SandboxError {
    if errno == Errno::EPERM || errno == Errno::EACCES || errno == Errno::ENOSYS {
        SandboxError::Forbidden(errno)
    } else if errno == Errno::ENOSPC || errno == Errno::EUSERS {
        SandboxError::TooMany(errno)
    } else {
        SandboxError::Unshare(errno)
    }
}

fn write(path: &'static str, text: &str) -> Result<(), SandboxError> {
    fs::write(path, text).map_err(|source| {
        if source.kind() == io::ErrorKind::PermissionDenied {
            SandboxError::Forbidden(Errno::EPERM)
        } else {
            SandboxError::Write { path, source }
        }
    })
}

/// The namespaces of another process, held open: they stay joinable whatever becomes of it.
#[derive(Debug)]
pub struct NamespacesOf {
    pid: u32,
    files: Vec<(Namespace, OwnedFd)>,
}

impl NamespacesOf {
    /// Opens all namespaces of a process.
    ///
    /// # Errors
    /// [`SandboxError::Join`] if the process is gone or is not ours to look into.
    pub fn open(pid: u32) -> Result<Self, SandboxError> {
        let open = |kind: Namespace| {
            let path = format!("/proc/{pid}/ns/{}", kind.file());
            let file =
                File::open(path).map_err(|source| SandboxError::Join { kind, pid, source })?;
            Ok((kind, OwnedFd::from(file)))
        };
        let files = Namespace::ALL
            .into_iter()
            .map(open)
            .collect::<Result<_, SandboxError>>()?;
        Ok(Self { pid, files })
    }

    /// Moves this process into them (for [`Namespace::Process`]: its children). Those we are in
    /// already are passed over.
    ///
    /// # Errors
    /// [`SandboxError::Join`] if one of them cannot be joined.
    pub fn join(&self) -> Result<(), SandboxError> {
        let ours = |kind: Namespace| fs::metadata(format!("/proc/self/ns/{}", kind.file()));
        let wrong = |kind, source| SandboxError::Join {
            kind,
            pid: self.pid,
            source,
        };
        let mut to_join = Vec::new();
        for (kind, file) in &self.files {
            let theirs = fs::metadata(format!("/proc/self/fd/{}", file.as_raw_fd()))
                .map_err(|source| wrong(*kind, source))?;
            let ours = ours(*kind).map_err(|source| wrong(*kind, source))?;
            if (ours.dev(), ours.ino()) != (theirs.dev(), theirs.ino()) {
                to_join.push((*kind, file));
            }
        }
        for (kind, file) in to_join {
            setns(file.as_fd(), kind.flag()).map_err(|errno| wrong(kind, errno.into()))?;
        }
        Ok(())
    }
}

/// From here on our mounts stay in our mount namespace; those of the system still reach us, so that
/// what it unmounts is not held.
///
/// # Errors
/// [`SandboxError::Mount`].
pub fn cut_off_mounts() -> Result<(), SandboxError> {
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .map_err(mount_error("the private root", Path::new("/")))
}

/// Mounts `/proc` anew, so that it shows the process numbers of our pid namespace.
///
/// # Errors
/// [`SandboxError::Mount`].
pub fn mount_proc() -> Result<(), SandboxError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let target = Path::new("/proc");
    mount(Some("proc"), target, Some("proc"), flags, None::<&str>)
        .map_err(mount_error("proc", target))
}

/// Mounts `/sys` anew, so that it shows the links of our network namespace. Where the system does
/// not allow that (masked `/sys`), an empty directory stands there: never the links of another.
///
/// # Errors
/// [`SandboxError::Mount`].
pub fn mount_sys() -> Result<(), SandboxError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let target = Path::new("/sys");
    mount(Some("sysfs"), target, Some("sysfs"), flags, None::<&str>)
        .map_err(mount_error("sysfs", target))
        .or_else(|_| mount_tmpfs(target))
}

/// Mounts an empty directory in memory (mode 0755).
///
/// # Errors
/// [`SandboxError::Mount`].
pub fn mount_tmpfs(target: &Path) -> Result<(), SandboxError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some("tmpfs"),
        target,
        Some("tmpfs"),
        flags,
        Some("mode=0755"),
    )
    .map_err(mount_error("tmpfs", target))
}

/// Makes a file or directory, with what is mounted below it, appear at `target` too.
///
/// # Errors
/// [`SandboxError::Mount`].
pub fn bind_mount(source: &Path, target: &Path) -> Result<(), SandboxError> {
    mount(
        Some(source),
        target,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
    .map_err(mount_error(&source.display().to_string(), target))
}

fn mount_error(what: &str, target: &Path) -> impl FnOnce(Errno) -> SandboxError {
    let (what, target) = (what.to_owned(), target.to_owned());
    move |errno| SandboxError::Mount {
        what,
        target,
        source: errno.into(),
    }
}

/// A file or directory held by itself, not by its path: it can be bind-mounted elsewhere after
/// something was mounted over its path.
#[derive(Debug)]
pub struct Held(File);

impl Held {
    /// Holds what is at the path.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = (OFlag::O_PATH | OFlag::O_CLOEXEC).bits();
        File::options()
            .read(true)
            .custom_flags(flags)
            .open(path)
            .map(Self)
    }

    /// Makes it appear at `target`.
    ///
    /// # Errors
    /// [`SandboxError::Mount`].
    pub fn bind_mount(&self, target: &Path) -> Result<(), SandboxError> {
        bind_mount(
            Path::new(&format!("/proc/self/fd/{}", self.0.as_raw_fd())),
            target,
        )
    }
}

/// Names this host.
///
/// # Errors
/// [`SandboxError::Hostname`].
pub fn set_hostname(name: &str) -> Result<(), SandboxError> {
    sethostname(name).map_err(|errno| SandboxError::Hostname {
        name: name.to_owned(),
        source: errno.into(),
    })
}

/// Leaves the terminal and its signals.
///
/// # Errors
/// If we lead a process group already.
pub fn leave_terminal() -> io::Result<()> {
    setsid().map(drop).map_err(io::Error::from)
}

/// Ends a process at once. One that is gone already is no error.
///
/// # Errors
/// If it is not ours to end.
pub fn kill_now(pid: u32) -> io::Result<()> {
    match kill(to_pid(pid)?, Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn to_pid(pid: u32) -> io::Result<Pid> {
    // 0 and the negative numbers name groups of processes.
    i32::try_from(pid)
        .ok()
        .filter(|pid| *pid > 0)
        .map(Pid::from_raw)
        .ok_or_else(|| io::Error::from(Errno::ESRCH))
}

/// The duty of a process number 1: takes leave of every child that ends, its own and the orphans,
/// for ever.
///
/// # Errors
/// If the kernel refuses to hold back signals; it does not end otherwise.
pub fn reap_for_ever() -> io::Result<Infallible> {
    // Held back before the first look, or the end of a child between look and wait would be missed.
    let signals = Signals::hold()?;
    loop {
        while let Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) =
            waitpid(None, Some(WaitPidFlag::WNOHANG))
        {}
        signals.next()?;
    }
}

/// What [`Signals::next`] reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caught {
    /// A child ended.
    Child,
    /// Ctrl-C or Ctrl-\: the terminal sends it to the child as well.
    Keyboard,
    /// Somebody asks us to end (SIGTERM) or the terminal is gone (SIGHUP).
    End(i32),
}

/// Signals taken one by one instead of by default action. Children inherit what is held back, so
/// start them with [`with_open_signals`].
#[derive(Debug)]
pub struct Signals(SigSet);

impl Signals {
    /// Holds the signals back from here on, in this thread.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn hold() -> io::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [
            Signal::SIGCHLD,
            Signal::SIGINT,
            Signal::SIGQUIT,
            Signal::SIGTERM,
            Signal::SIGHUP,
        ] {
            set.add(signal);
        }
        set.thread_block()?;
        Ok(Self(set))
    }

    /// Waits for the next one.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn next(&self) -> io::Result<Caught> {
        let signal = self.0.wait()?;
        if signal == Signal::SIGCHLD {
            Ok(Caught::Child)
        } else if signal == Signal::SIGINT || signal == Signal::SIGQUIT {
            Ok(Caught::Keyboard)
        } else {
            Ok(Caught::End(signal as i32))
        }
    }
}

/// The command's process begins with no signal held back, whatever its parent holds back.
pub fn with_open_signals(command: &mut Command) -> &mut Command {
    let open = || SigSet::empty().thread_set_mask().map_err(io::Error::from);
    // SAFETY: between fork and exec only one system call is made, sigprocmask, which is safe there;
    // nothing is allocated and no lock is taken.
    unsafe { command.pre_exec(open) }
}

/// The number of the signal that asks a process to end.
pub const TERMINATE: i32 = Signal::SIGTERM as i32;

/// Sends a signal by its number.
///
/// # Errors
/// If the number is none or the process is gone or not ours.
pub fn send_signal(pid: u32, signal: i32) -> io::Result<()> {
    kill(to_pid(pid)?, Signal::try_from(signal)?).map_err(io::Error::from)
}

/// Who we are.
pub fn user_id() -> u32 {
    geteuid().as_raw()
}

/// Whether we hold the right to make namespaces and mounts without a user namespace.
pub fn has_sys_admin() -> bool {
    holds(SYS_ADMIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_begin_with_open_signals() {
        let mask = |open: bool| {
            let mut command = Command::new("grep");
            command.args(["SigBlk", "/proc/self/status"]);
            if open {
                with_open_signals(&mut command);
            }
            String::from_utf8(command.output().unwrap().stdout).unwrap()
        };
        std::thread::spawn(move || {
            let _signals = Signals::hold().unwrap();
            assert!(
                mask(true).ends_with("\t0000000000000000\n"),
                "{}",
                mask(true)
            );
            assert_ne!(mask(false), mask(true), "nothing is held back");
        })
        .join()
        .unwrap();
    }

    #[test]
    fn what_a_system_may_forbid_comes_with_the_remedy() {
        let mount = |errno| mount_error("proc", Path::new("/proc"))(errno).to_string();
        assert!(mount(Errno::EACCES).contains("kernel.apparmor_restrict_unprivileged_userns=0"));
        assert_eq!(
            mount(Errno::EBUSY),
            "cannot mount proc on /proc: Device or resource busy (os error 16)"
        );
        assert!(
            unshare_error(Errno::EPERM)
                .to_string()
                .contains("kernel.unprivileged_userns_clone=1")
        );
        assert!(
            unshare_error(Errno::ENOSPC)
                .to_string()
                .contains("user.max_user_namespaces")
        );
    }

    #[test]
    fn groups_of_processes_are_never_killed() {
        assert!(kill_now(0).is_err());
        assert!(kill_now(u32::MAX).is_err());
        assert!(send_signal(0, 15).is_err());
    }

    #[test]
    fn namespaces_of_ourselves_are_joined_by_doing_nothing() {
        NamespacesOf::open(std::process::id())
            .unwrap()
            .join()
            .unwrap();
    }

    #[test]
    fn a_missing_process_has_no_namespaces_to_join() {
        let error = NamespacesOf::open(u32::MAX).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("namespace of process 4294967295"),
            "{error}"
        );
    }
}
