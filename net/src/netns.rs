//! Network namespaces: naming them, and doing things in them.
//!
//! The namespace of a thread is changed only on threads started for the purpose, which end
//! afterwards: a runtime's worker that came back with another namespace would silently act in the
//! wrong one. Invariant: the namespace of the calling thread is never changed.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::fstat;
use thiserror::Error;
use tokio::sync::oneshot;

use crate::{Netlink, NetlinkError};

/// A network namespace held open: it lives at least as long as this.
#[derive(Debug)]
pub struct NetNs(OwnedFd);

impl NetNs {
    /// The namespace at a path, as `ip netns add` and container engines leave them.
    ///
    /// # Errors
    /// `NotFound` if nothing is there, `InvalidInput` if it is something else than a network
    /// namespace, or what opening it said.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the descriptor is open, and the request takes no argument.
        match unsafe { ns_get_nstype(file.as_raw_fd()) } {
            Ok(kind) if kind == CloneFlags::CLONE_NEWNET.bits() => Ok(Self(file.into())),
            Ok(_) | Err(_) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} is not a network namespace", path.display()),
            )),
        }
    }

    /// The namespace a process is in.
    ///
    /// # Errors
    /// `NotFound` if there is no such process, `PermissionDenied` if it is not ours to look into.
    pub fn of_pid(pid: u32) -> io::Result<Self> {
        Self::open(Path::new(&format!("/proc/{pid}/ns/net")))
    }

    /// The namespace `ip netns` calls by this name.
    ///
    /// # Errors
    /// As [`NetNs::open`].
    pub fn named(name: &str) -> io::Result<Self> {
        Self::open(&Path::new("/run/netns").join(name))
    }

    /// The namespace of this thread.
    ///
    /// # Errors
    /// If `/proc` is not there.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// A fresh namespace with nothing in it but a loopback link that is down. It has no name, so it
    /// is gone when nobody holds it any more.
    ///
    /// # Errors
    /// `PermissionDenied` if we may not make namespaces.
    pub fn create() -> io::Result<Self> {
        on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Self::current()
        })?
    }

    /// Whether both are one and the same.
    pub fn is_same(&self, other: &Self) -> bool {
        match (fstat(&self.0), fstat(&other.0)) {
            (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
            (Err(_), _) | (_, Err(_)) => false,
        }
    }

    /// Another handle to the same namespace.
    ///
    /// # Errors
    /// If we may open no more files.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    fn enter(&self) -> io::Result<()> {
        Ok(setns(&self.0, CloneFlags::CLONE_NEWNET)?)
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Runs something in a namespace, on a thread of its own, and waits for it. Sockets it opens belong
/// to that namespace for good; processes it starts begin there.
///
/// # Errors
/// If the thread cannot be started or may not enter.
pub fn run_in<T: Send>(ns: &NetNs, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_thread(|| ns.enter().map(|()| f()))?
}

fn on_thread<T: Send>(f: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("weft-netns".to_owned());
        match thread.spawn_scoped(scope, f)?.join() {
            Ok(done) => Ok(done),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Why nothing was done in a namespace.
#[derive(Debug, Error)]
pub enum EnterError {
    /// No thread, or no runtime on it.
    #[error("cannot start a thread for another network namespace: {0}")]
    Thread(#[source] io::Error),
    /// The namespace would not have us.
    #[error("cannot enter the network namespace: {source}{}", remedy(.source))]
    Enter {
        /// How it failed.
        source: io::Error,
    },
    /// No socket there.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// It ended without a result.
    #[error("the work in the network namespace broke off")]
    BrokeOff,
}

fn remedy(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied {
        "; weft needs the capability CAP_SYS_ADMIN for it: run it as root"
    } else {
        ""
    }
}

/// Runs something with one netlink socket in this thread's namespace and one in `ns`, on a thread
/// that has changed to `ns`. Once begun it runs to its end, even if the caller stops waiting.
///
/// # Errors
/// If the thread, the namespace or a socket cannot be had.
pub async fn with_netlink<T, F>(ns: &NetNs, f: F) -> Result<T, EnterError>
where
    F: AsyncFnOnce(Netlink, Netlink) -> T + Send + 'static,
    T: Send + 'static,
{
    let ns = ns.try_clone().map_err(EnterError::Thread)?;
    let (done, result) = oneshot::channel();
    thread::Builder::new()
        .name("weft-netns".to_owned())
        .spawn(move || {
            // Nobody waits any more if this cannot be sent.
            let _ = done.send(in_both(&ns, f));
        })
        .map_err(EnterError::Thread)?;
    result.await.unwrap_or(Err(EnterError::BrokeOff))
}

/// The new thread begins in the namespace of the one that started it.
fn in_both<T>(ns: &NetNs, f: impl AsyncFnOnce(Netlink, Netlink) -> T) -> Result<T, EnterError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(EnterError::Thread)?;
    runtime.block_on(async {
        let here = Netlink::new()?;
        ns.enter().map_err(|source| EnterError::Enter { source })?;
        let there = Netlink::new()?;
        Ok(f(here, there).await)
    })
}

nix::ioctl_none! {
    /// The kind of a namespace as the flag that makes one, by linux/nsfs.h.
    ns_get_nstype, 0xb7, 3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn other_things_than_network_namespaces_are_refused() {
        for path in ["/proc/self/ns/uts", "/proc/self/status", "/"] {
            let error = NetNs::open(Path::new(path)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path}");
        }
        let error = NetNs::named("weft-none-such").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let error = NetNs::of_pid(u32::MAX).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_namespace_is_the_same_as_itself_only() {
        let current = NetNs::current().unwrap();
        assert!(current.is_same(&NetNs::of_pid(std::process::id()).unwrap()));
        assert!(current.is_same(&current.try_clone().unwrap()));
        if testing::privileged() {
            assert!(!current.is_same(&NetNs::create().unwrap()));
        }
    }

    #[test]
    fn work_in_another_namespace_leaves_the_caller_where_it_was() {
        if !testing::privileged() {
            return;
        }
        let before = NetNs::current().unwrap();
        let other = NetNs::create().unwrap();
        let there = run_in(&other, || NetNs::current().unwrap()).unwrap();
        assert!(there.is_same(&other));
        assert!(NetNs::current().unwrap().is_same(&before));
    }

    #[test]
    fn both_namespaces_are_at_hand_and_told_apart() {
        testing::in_namespace(async |outer, _| {
            outer.add_bridge("here").await.unwrap();
            let other = NetNs::create().unwrap();
            let seen = with_netlink(&other, async |here, there| {
                there.add_bridge("there").await.unwrap();
                (
                    here.list_links("").await.unwrap(),
                    there.list_links("").await.unwrap(),
                )
            });
            let (here, there) = seen.await.unwrap();
            assert_eq!(here, ["here", "lo"]);
            assert_eq!(there, ["lo", "there"]);
        });
    }
}
