//! From what people typed to a container: a lasting id and an open network namespace.
//!
//! The id is what addresses and names are filed under, so it must neither change while the container
//! lives nor be met again afterwards: Docker's own id; for a process its number with its start
//! time, since numbers are used again; for a namespace its path, so that one that is made anew
//! under the same name gets its address back.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use thiserror::Error;
use weft_api::{ContainerId, ContainerIdError};
use weft_net::netns::NetNs;

use crate::Target;
use crate::docker::{Docker, DockerError};

/// Something with a network namespace.
#[derive(Debug)]
pub struct Container {
    /// What its addresses and names are filed under.
    pub id: ContainerId,
    /// Its network namespace; none if it does not run any more.
    pub ns: Option<NetNs>,
    /// What Docker calls it, if it is one of Docker's.
    pub docker: Option<DockerNames>,
}

/// What Docker calls a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DockerNames {
    /// Its name.
    pub name: String,
    /// Its host name, with the domain if it was given one; none if Docker made it up.
    pub hostname: Option<String>,
    /// Its aliases on Docker's networks and the service it is of, in any order.
    pub aliases: Vec<String>,
}

/// Why a container is not found.
#[derive(Debug, Error)]
pub enum FindError {
    /// No such process.
    #[error("there is no process {0}")]
    NoProcess(u32),
    /// Its namespace cannot be opened.
    #[error("cannot open the network namespace of {target}: {source}")]
    Open {
        /// Whose.
        target: String,
        /// What the system says.
        source: io::Error,
    },
    /// Docker does not tell.
    #[error("{0}")]
    Docker(#[from] DockerError),
    /// The path or name is not one we can keep.
    #[error("{0}")]
    Id(#[from] ContainerIdError),
}

impl Container {
    /// Finds what a target means. A Docker container or a namespace path that is there no longer is
    /// found without a namespace, so that what it held can still be freed.
    ///
    /// # Errors
    /// There is no such process or container, or its namespace cannot be opened.
    pub async fn find(target: &Target) -> Result<Self, FindError> {
        match target {
            Target::Pid(pid) => by_pid(*pid),
            Target::NetNs(path) => by_path(path),
            Target::Docker(name) => by_docker(&Docker::open().await?, name).await,
        }
    }

    /// Finds the container an id was made for; none if it is gone, or was never a container.
    pub async fn of_id(id: &ContainerId, docker: Option<&Docker>) -> Option<Self> {
        if let Some(path) = id.as_str().strip_prefix(NETNS) {
            return by_path(Path::new(path)).ok();
        }
        if let Some(rest) = id.as_str().strip_prefix(PID) {
            let (pid, _start) = rest.split_once('-')?;
            let found = by_pid(pid.parse().ok()?).ok()?;
            return Some(found).filter(|found| found.id == *id);
        }
        by_docker(docker?, id.as_str()).await.ok()
    }

    /// Whether an id was made for a process of this number, at whatever time it ran.
    pub fn is_of_pid(id: &ContainerId, pid: u32) -> bool {
        let rest = id.as_str().strip_prefix(PID);
        let number = rest.and_then(|rest| rest.split_once('-')).map(|(n, _)| n);
        number.is_some_and(|n| n == pid.to_string())
    }
}

fn by_pid(pid: u32) -> Result<Container, FindError> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    let stat = stat.map_err(|_| FindError::NoProcess(pid))?;
    let start = start_time(&stat).ok_or(FindError::NoProcess(pid))?;
    let ns = NetNs::of_pid(pid).map_err(|source| FindError::Open {
        target: format!("process {pid}"),
        source,
    })?;
    Ok(Container {
        id: ContainerId::new(format!("{PID}{pid}-{start}"))?,
        ns: Some(ns),
        docker: None,
    })
}

fn by_path(path: &Path) -> Result<Container, FindError> {
    let path = settled(path);
    let id = ContainerId::new(format!("{NETNS}{}", path.display()))?;
    let ns = match NetNs::open(&path) {
        Ok(ns) => Some(ns),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(source) => {
            let target = path.display().to_string();
            return Err(FindError::Open { target, source });
        }
    };
    Ok(Container {
        id,
        ns,
        docker: None,
    })
}

async fn by_docker(docker: &Docker, name: &str) -> Result<Container, FindError> {
    let found = docker.inspect(name).await?;
    let ns = match found.pid {
        Some(pid) => Some(NetNs::of_pid(pid).map_err(|source| FindError::Open {
            target: name.to_owned(),
            source,
        })?),
        None => None,
    };
    Ok(Container {
        id: found.id,
        ns,
        docker: Some(found.names),
    })
}

/// The path with links in its directory resolved, so that `/var/run` and `/run` give one id. The last
/// part stays: a link in `/proc` leads to no path.
fn settled(path: &Path) -> PathBuf {
    let dir = path.parent().and_then(|dir| fs::canonicalize(dir).ok());
    match (dir, path.file_name()) {
        (Some(dir), Some(name)) => dir.join(name),
        (None, _) | (_, None) => path.to_owned(),
    }
}

/// When a process started, in clock ticks after the system did: field 22 of `/proc/PID/stat`. The
/// second field is the program's name in parentheses, which may hold blanks and parentheses.
fn start_time(stat: &str) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    behind_name.split_whitespace().nth(19)?.parse().ok()
}

const PID: &str = "pid-";
const NETNS: &str = "netns:";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_of_its_number() {
        let us = std::process::id();
        let found = by_pid(us).unwrap();
        assert!(found.id.as_str().starts_with(&format!("pid-{us}-")));
        assert_eq!(by_pid(us).unwrap().id, found.id);
        assert!(Container::is_of_pid(&found.id, us));
        assert!(!Container::is_of_pid(&found.id, us + 1));
        assert!(!Container::is_of_pid(&ContainerId::expose(), us));
    }

    #[tokio::test]
    async fn an_id_leads_back_to_its_container_only() {
        let found = by_pid(std::process::id()).unwrap();
        assert!(Container::of_id(&found.id, None).await.is_some());
        let earlier = format!("pid-{}-1", std::process::id());
        let earlier = ContainerId::new(earlier).unwrap();
        assert!(Container::of_id(&earlier, None).await.is_none());
        assert!(
            Container::of_id(&ContainerId::expose(), None)
                .await
                .is_none()
        );
    }

    #[test]
    fn the_start_time_is_found_behind_any_program_name() {
        let fields: Vec<String> = (3..=40).map(|n| n.to_string()).collect();
        let stat = format!("17 (a) b (c) {}", fields.join(" "));
        assert_eq!(start_time(&stat), Some(22));
        assert_eq!(start_time("17 (cut"), None);
        assert_eq!(start_time("17 (cut) S 1"), None);
    }

    #[test]
    fn a_missing_process_is_an_error_and_a_missing_path_is_a_gone_container() {
        assert!(matches!(by_pid(u32::MAX), Err(FindError::NoProcess(_))));
        let gone = by_path(Path::new("/var/run/../run/netns/none-such")).unwrap();
        assert!(gone.ns.is_none());
    }

    #[test]
    fn two_ways_to_one_path_give_one_id() {
        let dir = tempfile::TempDir::new().unwrap();
        let real = dir.path().join("real");
        fs::create_dir(&real).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert_eq!(settled(&link.join("c1")), settled(&real.join("c1")));
        let ns = Path::new("/proc/self/ns/net");
        assert!(by_path(ns).unwrap().ns.is_some());
    }
}
