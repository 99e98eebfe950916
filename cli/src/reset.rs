//! `weft reset`: everything weft keeps and made on this host goes.
//!
//! The order is such that nothing is lost on the way: address space is handed over while the router
//! still runs, and its state is deleted last, when nobody uses it any more and the links are gone.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use thiserror::Error;
use weft_api::{CallError, Client};
use weft_net::bridge::{note_of, remove_dns_address};
use weft_net::forward;
use weft_net::masquerade::{self, MasqueradeError};
use weft_net::vxlan::{self, guard, guard::GuardError};
use weft_net::{Netlink, NetlinkError};
use weft_plugin::attach::HOST_PREFIX;
use weft_plugin::network::remove_docker_network;
use weft_plugin::proxy::{place, socket_beside};

use crate::args::ResetArgs;
use crate::run::{StillRunning, until_gone};

/// Why not everything is gone.
#[derive(Debug, Error)]
pub(crate) enum ResetError {
    #[error("{0}")]
    Call(#[from] CallError),
    #[error("{0}")]
    StillRunning(#[from] StillRunning),
    /// There is state, and no router to hand its addresses over.
    #[error(
        "weft is not running, so this peer's addresses ({}) cannot be handed to another: \
         run `weft launch` first, or `weft reset --force` and then `weft rmpeer` on another peer",
        state_dir.display()
    )]
    NotRunning { state_dir: PathBuf },
    #[error("a router still uses {}, on another socket: stop it first", state_dir.display())]
    Locked { state_dir: PathBuf },
    #[error("cannot {action} {}: {source}", path.display())]
    State {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{0}")]
    Links(#[from] NetlinkError),
    #[error("{0}")]
    Masquerade(#[from] MasqueradeError),
    #[error("{0}")]
    Guard(#[from] GuardError),
}

/// Resets, and returns what is worth a word.
pub(crate) async fn reset(client: &Client, args: &ResetArgs) -> Result<Vec<String>, ResetError> {
    let mut notes = end_router(client, args).await?;
    // The proxy lives on when a router ends.
    let proxy = socket_beside(client.socket());
    place::end(&proxy);
    let _ = fs::remove_file(place::lock_of(&proxy));
    let lock = lock(&args.state_dir)?;
    notes.extend(end_plugin(&args.plugin_socket).await?);
    remove_links(args).await?;
    if args.identity {
        notes.extend(set_aside(&args.state_dir)?);
    }
    remove_state(&args.state_dir)?;
    drop(lock);
    Ok(notes)
}

/// Hands the address space over, unless it is another host's, and stops the router.
async fn end_router(client: &Client, args: &ResetArgs) -> Result<Vec<String>, ResetError> {
    if args.identity {
        return match client.stop().await {
            Ok(()) => Ok(until_gone(client).await.map(|()| Vec::new())?),
            Err(CallError::NotRunning { .. }) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        };
    }
    let note = match client.reset_prepare().await {
        Ok(handed) => match handed.heir {
            Some(heir) => format!("this peer's addresses belong to {heir} from here on"),
            None => "no peer was there to take this peer's addresses".to_owned(),
        },
        Err(CallError::NotRunning { .. }) => {
            let state_dir = args.state_dir.clone();
            if state_dir.join(STATE_FILE).exists() && !args.force {
                return Err(ResetError::NotRunning { state_dir });
            }
            return Ok(Vec::new());
        }
        Err(error @ CallError::Refused { .. }) if args.force => {
            format!("this peer's addresses were not handed over: {error}")
        }
        Err(error) => return Err(error.into()),
    };
    client.stop().await?;
    until_gone(client).await?;
    Ok(vec![note])
}

/// Holds the state directory as a router would, so that none uses it meanwhile; none if there is no
/// such directory.
fn lock(state_dir: &Path) -> Result<Option<File>, ResetError> {
    let path = state_dir.join(LOCK_FILE);
    let lock = match File::options().write(true).open(&path) {
        Ok(lock) => lock,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed("open", path)(source)),
    };
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => {
            let state_dir = state_dir.to_owned();
            Err(ResetError::Locked { state_dir })
        }
        Err(TryLockError::Error(source)) => Err(failed("lock", path)(source)),
    }
}

/// Has Docker forget its network `weft`, for which it asks the plugin, and then the plugin end: it does
/// when its socket is gone.
async fn end_plugin(socket: &Path) -> Result<Option<String>, ResetError> {
    if !socket.exists() {
        return Ok(None);
    }
    let removed = remove_docker_network().await;
    let note = removed.err().map(|error| {
        format!("Docker keeps its network weft: {error}; remove it with `docker network rm weft` after the next `weft launch`")
    });
    match fs::remove_file(socket) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(failed("delete", socket.to_owned())(error))
        }
        Ok(()) | Err(_) => Ok(note),
    }
}

/// Deletes the bridge, its TAP, the VXLAN and what keeps strangers out of it, the host's ends of containers' interfaces and thereby the containers'
/// ends, and the rules for the resolver, for an exposed host and in the host's packet filter.
async fn remove_links(args: &ResetArgs) -> Result<(), ResetError> {
    let links = Netlink::new()?;
    for link in links.list_links(HOST_PREFIX).await? {
        links.del_link(&link).await?;
    }
    let networks = links.list_noted(&note_of(args.bridge.as_str())).await?;
    for link in &networks {
        links.del_link(link).await?;
        forward::remove(link).await;
    }
    // The port is shut before its guard goes.
    vxlan::remove(&links, args.vxlan.as_str()).await?;
    guard::remove().await?;
    for link in [&args.tap, &args.bridge] {
        links.del_link(link.as_str()).await?;
    }
    // The rules are known by their table; the address went with the bridge.
    remove_dns_address(&links, args.bridge.as_str(), Ipv4Addr::UNSPECIFIED).await?;
    forward::remove(args.bridge.as_str()).await;
    Ok(masquerade::remove().await?)
}

/// Puts a state away that is a copy of another host's; says where it is kept.
fn set_aside(state_dir: &Path) -> Result<Option<String>, ResetError> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH);
    let name = format!("cloned-{}.json", seconds.map_or(0, |s| s.as_secs()));
    let to = state_dir.join(name);
    match fs::rename(state_dir.join(STATE_FILE), &to) {
        Ok(()) => Ok(Some(format!(
            "the other host's state is kept as {}",
            to.display()
        ))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed("set aside the state as", to)(source)),
    }
}

/// Deletes our files, and the directory if nothing else is in it.
fn remove_state(state_dir: &Path) -> Result<(), ResetError> {
    let list = |source| failed("list", state_dir.to_owned())(source);
    let entries = match fs::read_dir(state_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(list(source)),
    };
    for entry in entries {
        let entry = entry.map_err(list)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let ours = [STATE_FILE, LOCK_FILE].contains(&&*name);
        if ours
            || [UNFINISHED_PREFIX, LOG_PREFIX]
                .iter()
                .any(|p| name.starts_with(p))
        {
            let path = entry.path();
            fs::remove_file(&path).map_err(failed("delete", path))?;
        }
    }
    match fs::remove_dir(state_dir) {
        // Files that are not ours, or a mount point: the directory stays.
        Err(error) if !is_in_use(&error) => Err(failed("delete", state_dir.to_owned())(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn is_in_use(error: &io::Error) -> bool {
    let kind = error.kind();
    kind == ErrorKind::DirectoryNotEmpty || kind == ErrorKind::ResourceBusy
}

fn failed(action: &'static str, path: PathBuf) -> impl FnOnce(io::Error) -> ResetError {
    move |source| ResetError::State {
        action,
        path,
        source,
    }
}

/// The router's one file of state. Its name and the next two are given by the root package's
/// `state.rs`, the last by its `launch.rs`.
const STATE_FILE: &str = "state.json";
/// What a router holds locked while it runs.
const LOCK_FILE: &str = "lock";
/// What a router that was killed while writing may leave behind.
const UNFINISHED_PREFIX: &str = ".state-";
/// The log of a router in the background, and its older part.
const LOG_PREFIX: &str = "weft.log";

#[cfg(test)]
mod tests {
    use weft_net::netns::{NetNs, run_in};

    use super::*;

    fn files(dir: &Path, names: &[&str]) {
        for name in names {
            fs::write(dir.join(name), "").unwrap();
        }
    }

    #[test]
    fn our_files_go_and_others_stay() {
        let dir = tempfile::TempDir::new().unwrap();
        let ours = dir.path().join("ours");
        fs::create_dir(&ours).unwrap();
        files(
            &ours,
            &[
                "state.json",
                "lock",
                ".state-x1y2",
                "weft.log",
                "weft.log.1",
            ],
        );
        remove_state(&ours).unwrap();
        assert!(!ours.exists());
        remove_state(&ours).unwrap();

        let mixed = dir.path().join("mixed");
        fs::create_dir(&mixed).unwrap();
        files(&mixed, &["state.json", "notes.txt"]);
        remove_state(&mixed).unwrap();
        assert!(mixed.join("notes.txt").exists());
        assert!(!mixed.join("state.json").exists());
    }

    #[test]
    fn state_that_a_router_uses_is_left_alone() {
        let dir = tempfile::TempDir::new().unwrap();
        assert!(lock(dir.path()).unwrap().is_none());
        files(dir.path(), &["lock"]);
        let held = lock(dir.path()).unwrap();
        assert!(held.is_some());
        assert!(matches!(lock(dir.path()), Err(ResetError::Locked { .. })));
    }

    #[test]
    fn every_link_of_ours_goes_and_others_stay() {
        if !weft_net::has_net_admin() {
            assert!(
                std::env::var_os("CI").is_none(),
                "CI runs this test as root"
            );
            eprintln!("skipped: needs CAP_NET_ADMIN");
            return;
        }
        let args = ResetArgs {
            force: false,
            identity: false,
            state_dir: PathBuf::new(),
            bridge: "weft".parse().unwrap(),
            tap: "weft-tap".parse().unwrap(),
            vxlan: "weft-vx".parse().unwrap(),
            plugin_socket: PathBuf::new(),
        };
        let test = async {
            let links = Netlink::new().unwrap();
            links.add_bridge("weft").await.unwrap();
            links.add_bridge("docker0").await.unwrap();
            links.add_veth("weftpl012345678", "ethwe").await.unwrap();
            links.add_veth("weft-tap", "stand-in").await.unwrap();
            let dns = Ipv4Addr::new(169, 254, 67, 83);
            let pool = (Ipv4Addr::new(10, 32, 0, 0).into(), 12);
            links.set_up("weft").await.unwrap();
            weft_net::bridge::dns_address(&links, &["weft"], dns, &[pool])
                .await
                .unwrap();
            remove_links(&args).await.unwrap();
            assert_eq!(links.list_links("").await.unwrap(), ["docker0", "lo"]);
            remove_links(&args).await.unwrap();
        };
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(test);
        };
        run_in(&NetNs::create().unwrap(), run).unwrap();
    }

    #[tokio::test]
    async fn a_socket_that_nobody_serves_goes() {
        let dir = tempfile::TempDir::new().unwrap();
        let socket = dir.path().join("weft.sock");
        assert_eq!(end_plugin(&socket).await.unwrap(), None);
        files(dir.path(), &["weft.sock"]);
        end_plugin(&socket).await.unwrap();
        assert!(!socket.exists());
    }

    #[tokio::test]
    async fn without_a_router_only_force_gives_addresses_up() {
        let dir = tempfile::TempDir::new().unwrap();
        let client = Client::new(dir.path().join("weft.sock"));
        let mut args = ResetArgs {
            force: false,
            identity: false,
            state_dir: dir.path().to_owned(),
            bridge: "weft".parse().unwrap(),
            tap: "weft-tap".parse().unwrap(),
            vxlan: "weft-vx".parse().unwrap(),
            plugin_socket: PathBuf::new(),
        };
        assert!(end_router(&client, &args).await.unwrap().is_empty());
        files(dir.path(), &["state.json"]);
        let error = end_router(&client, &args).await.unwrap_err();
        assert!(error.to_string().contains("weft reset --force"), "{error}");
        args.force = true;
        assert!(end_router(&client, &args).await.unwrap().is_empty());
    }
    #[tokio::test]
    async fn for_an_identity_of_its_own_a_host_hands_nothing_over_and_keeps_the_others_state() {
        let dir = tempfile::TempDir::new().unwrap();
        let client = Client::new(dir.path().join("weft.sock"));
        let args = ResetArgs {
            force: false,
            identity: true,
            state_dir: dir.path().to_owned(),
            bridge: "weft".parse().unwrap(),
            tap: "weft-tap".parse().unwrap(),
            vxlan: "weft-vx".parse().unwrap(),
            plugin_socket: PathBuf::new(),
        };
        assert_eq!(set_aside(dir.path()).unwrap(), None);
        files(dir.path(), &["state.json"]);
        assert!(end_router(&client, &args).await.unwrap().is_empty());
        let kept = set_aside(dir.path()).unwrap().unwrap();
        remove_state(dir.path()).unwrap();
        let left = fs::read_dir(dir.path()).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(kept.contains(&left[0].display().to_string()), "{kept}");
    }
}
