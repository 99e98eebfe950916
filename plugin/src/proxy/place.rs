//! Where the proxy is: its socket, and the lock that only one at a time holds.
//!
//! The lock's file has the process number of its holder in it, so that whoever stops weft can end a
//! proxy that another router started. It is beside the socket, and stays when the proxy is gone: a
//! lock whose file is deleted can be held twice.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use thiserror::Error;
use tokio::net::UnixListener;

/// A socket that is ours, until this is dropped.
#[derive(Debug)]
pub struct Place {
    socket: PathBuf,
    _lock: File,
}

/// Why there is no socket for a proxy.
#[derive(Debug, Error)]
pub enum PlaceError {
    /// Another proxy has it.
    #[error("a proxy listens on {} already", .0.display())]
    Taken(PathBuf),
    /// It cannot be made.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl Place {
    /// Takes a place and listens there. Whoever may use Docker's socket may use ours: it gets the same
    /// group and mode, and is root's alone where Docker's is not a local socket.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub fn take(socket: &Path, like: Option<&Path>) -> Result<(Self, UnixListener), PlaceError> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| PlaceError::File {
                action,
                path,
                source,
            }
        };
        if let Some(dir) = socket.parent() {
            fs::create_dir_all(dir).map_err(failed("make", dir))?;
        }
        let path = lock_of(socket);
        let open = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            // Whoever can open it can lock it.
            .mode(0o600)
            .open(&path);
        let mut lock = open.map_err(failed("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(PlaceError::Taken(socket.to_owned())),
            Err(TryLockError::Error(source)) => return Err(failed("lock", &path)(source)),
        }
        let note = lock
            .set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()));
        note.map_err(failed("write", &path))?;
        let bind = || -> io::Result<UnixListener> {
            remove(socket)?;
            let listener = UnixListener::bind(socket)?;
            let (mode, group) = match like.map(fs::metadata) {
                Some(Ok(docker)) => (docker.mode() & 0o666, Some(docker.gid())),
                Some(Err(_)) | None => (0o600, None),
            };
            chown(socket, None, group)?;
            fs::set_permissions(socket, fs::Permissions::from_mode(mode))?;
            Ok(listener)
        };
        let listener = bind().map_err(failed("listen on", socket))?;
        let place = Self {
            socket: socket.to_owned(),
            _lock: lock,
        };
        Ok((place, listener))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = remove(&self.socket);
    }
}

/// Whether a proxy holds this place.
pub fn is_taken(socket: &Path) -> bool {
    holder(socket).is_some()
}

/// Ends the proxy on this socket, if there is one, and waits until it is gone.
pub fn end(socket: &Path) {
    let deadline = Instant::now() + GONE;
    while let Some(pid) = holder(socket).filter(|_| Instant::now() < deadline) {
        // It may have gone by itself meanwhile.
        let _ = kill(pid, Signal::SIGTERM);
        thread::sleep(POLL);
    }
    let _ = remove(socket);
}

/// Ends the proxy on this socket if it runs another program than we do, as after an upgrade.
pub fn end_other_program(socket: &Path) {
    let program = |pid: &str| fs::read_link(format!("/proc/{pid}/exe")).ok();
    let Some(pid) = holder(socket) else {
        return;
    };
    if program(&pid.to_string()) != program("self") {
        end(socket);
    }
}

/// The process that holds the lock.
fn holder(socket: &Path) -> Option<Pid> {
    let lock = File::options().read(true).open(lock_of(socket)).ok()?;
    match lock.try_lock_shared() {
        Err(TryLockError::WouldBlock) => {}
        Ok(()) | Err(TryLockError::Error(_)) => return None,
    }
    let mut text = String::new();
    lock.take(32).read_to_string(&mut text).ok()?;
    text.trim()
        .parse()
        .ok()
        .filter(|pid| *pid > 1)
        .map(Pid::from_raw)
}

/// The lock of the proxy on a socket.
pub fn lock_of(socket: &Path) -> PathBuf {
    socket.with_extension("lock")
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// How long a proxy may take to end.
const GONE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_one_has_the_place_and_the_next_gets_it() {
        let dir = tempfile::TempDir::new().unwrap();
        let socket = dir.path().join("docker.sock");
        assert!(!is_taken(&socket));
        let first = Place::take(&socket, None).unwrap();
        assert!(is_taken(&socket));
        let error = Place::take(&socket, None).unwrap_err();
        assert!(matches!(error, PlaceError::Taken(_)), "{error}");
        drop(first);
        assert!(!is_taken(&socket) && !socket.exists());
        drop(Place::take(&socket, None).unwrap());
    }

    #[tokio::test]
    async fn the_socket_opens_for_whom_dockers_does() {
        let dir = tempfile::TempDir::new().unwrap();
        let (docker, socket) = (dir.path().join("d.sock"), dir.path().join("docker.sock"));
        let _daemon = UnixListener::bind(&docker).unwrap();
        fs::set_permissions(&docker, fs::Permissions::from_mode(0o660)).unwrap();
        let _place = Place::take(&socket, Some(&docker)).unwrap();
        assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o777, 0o660);
        drop(_place);
        let _place = Place::take(&socket, None).unwrap();
        assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn where_nobody_is_nobody_is_ended() {
        let dir = tempfile::TempDir::new().unwrap();
        end(&dir.path().join("docker.sock"));
    }
}
