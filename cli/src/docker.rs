//! `weft env` and `weft setup docker`: how Docker's commands and dockerd learn of weft.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use tokio::net::UnixStream;
use weft_api::{CallError, Client};
use weft_plugin::managed::{self, Managed, ManagedError};
use weft_plugin::proxy::{Daemon, DaemonError, socket_beside};
use weft_plugin::setup::{self, Resolver, Setup, SetupError, Wanted};

use crate::args::{SetupDockerArgs, SetupDockerPluginArgs};

/// Why a shell is not told anything.
#[derive(Debug, Error)]
pub(crate) enum EnvError {
    #[error(
        "no proxy listens on {}: start the router with `weft launch`, and Docker if it is not running", .0.display()
    )]
    NoProxy(PathBuf),
    #[error("nothing to restore: DOCKER_HOST does not lead to weft's proxy")]
    NothingToRestore,
}

/// What a shell is told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Env {
    pub(crate) shell: String,
    /// The variables as they will be; none = not set.
    pub(crate) variables: BTreeMap<&'static str, Option<String>>,
    pub(crate) notes: Vec<String>,
}

/// What `weft env` prints.
pub(crate) async fn env(router: &Path, restore: bool) -> Result<Env, EnvError> {
    let proxy = socket_beside(router);
    let now = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (current, before) = (now(HOST), now(BEFORE));
    if restore {
        return restored(&proxy, current.as_deref(), before);
    }
    if !listens(&proxy).await {
        return Err(EnvError::NoProxy(proxy));
    }
    let mut env = led_to(&proxy, current.as_deref(), before);
    match Daemon::Unix(proxy).knows_runtime().await {
        Ok(true) => {}
        Ok(false) => env.notes.push(NO_RUNTIME.to_owned()),
        Err(error) => env.notes.push(error.to_string()),
    }
    Ok(env)
}

/// Whether somebody listens there, or does in a moment: the proxy of a router that was just started.
async fn listens(proxy: &Path) -> bool {
    for _ in 0..TRIES {
        if UnixStream::connect(proxy).await.is_ok() {
            return true;
        }
        tokio::time::sleep(PAUSE).await;
    }
    false
}

fn led_to(proxy: &Path, current: Option<&str>, before: Option<String>) -> Env {
    let ours = format!("unix://{}", proxy.display());
    // Once it is ours, what was before is known already.
    let before = match current {
        Some(current) if current == ours => before,
        other => other.map(str::to_owned),
    };
    let shell = match &before {
        Some(before) => format!(
            "export {HOST}={} {BEFORE}={}\n",
            quoted(&ours),
            quoted(before)
        ),
        None => format!("export {HOST}={}\n", quoted(&ours)),
    };
    Env {
        shell,
        variables: BTreeMap::from([(HOST, Some(ours)), (BEFORE, before)]),
        notes: Vec::new(),
    }
}

fn restored(proxy: &Path, current: Option<&str>, before: Option<String>) -> Result<Env, EnvError> {
    if current != Some(&format!("unix://{}", proxy.display())) {
        return Err(EnvError::NothingToRestore);
    }
    let shell = match &before {
        Some(before) => format!("export {HOST}={}; unset {BEFORE}\n", quoted(before)),
        None => format!("unset {HOST} {BEFORE}\n"),
    };
    Ok(Env {
        shell,
        variables: BTreeMap::from([(HOST, before), (BEFORE, None)]),
        notes: Vec::new(),
    })
}

/// A word for a shell; what needs no quotes gets none.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/:._-@%+=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Why dockerd does not know the runtime as it should.
#[derive(Debug, Error)]
pub(crate) enum DockerSetupError {
    #[error("{0}")]
    Setup(#[from] SetupError),
    #[error("cannot tell where this program is: {0}")]
    Program(#[source] io::Error),
    #[error("{0}")]
    Managed(#[from] ManagedError),
    #[error("{0}")]
    Router(#[from] CallError),
    #[error("DNS is switched off on this router: start it without --no-dns, or leave --dns out")]
    NoDns,
    #[error("cannot have dockerd read its configuration: {0}")]
    Reload(#[source] io::Error),
    #[error("{0}")]
    Daemon(#[from] DaemonError),
    #[error(
        "dockerd has read {}, but did not take the runtime from it: its log says why; it may have been started with --add-runtime or another --config-file", .0.display()
    )]
    NotTaken(PathBuf),
}

/// Does what `weft setup docker` says; returns what is worth a word.
pub(crate) async fn setup(
    args: &SetupDockerArgs,
    router: &Client,
) -> Result<Vec<String>, DockerSetupError> {
    let config = &args.config;
    let done = if args.undo {
        // Without a router it is taken for the usual one.
        let resolver = resolver(router).await.unwrap_or_else(|_| Resolver {
            address: USUAL_RESOLVER,
            domain: USUAL_DOMAIN.to_owned(),
        });
        setup::undo(config, &resolver)?
    } else {
        let program = std::env::current_exe().map_err(DockerSetupError::Program)?;
        let resolver = match args.dns {
            true => Some(resolver(router).await?),
            false => None,
        };
        let wanted = Wanted {
            runtime: &setup::link(&program)?,
            default: args.default_runtime,
            resolver: resolver.as_ref(),
        };
        setup::install(config, wanted)?
    };
    let mut notes = Vec::new();
    match done {
        Setup::Unchanged => notes.push(format!("{} is as it should be", config.display())),
        Setup::Written(None) => notes.push(format!("wrote {}", config.display())),
        Setup::Written(Some(copy)) => {
            let (config, copy) = (config.display(), copy.display());
            notes.push(format!("wrote {config}; as it was it is in {copy}"));
        }
        Setup::Removed => notes.push(format!(
            "removed {}: nothing else was in it",
            config.display()
        )),
    }
    notes.push(taken(config, !args.undo).await?);
    if args.dns {
        notes.push(READ_AT_START.to_owned());
    }
    Ok(notes)
}

async fn resolver(router: &Client) -> Result<Resolver, DockerSetupError> {
    let network = router.network().await?;
    match (network.dns, network.domain) {
        (Some(address), Some(domain)) => Ok(Resolver { address, domain }),
        (None, _) | (_, None) => Err(DockerSetupError::NoDns),
    }
}

/// Does what `weft setup docker-plugin` says; returns what is worth a word.
pub(crate) async fn setup_plugin(
    args: &SetupDockerPluginArgs,
    router: &Path,
) -> Result<String, DockerSetupError> {
    let name = &args.name;
    let done = if args.undo {
        managed::undo(name).await?
    } else {
        managed::install(name, router).await?
    };
    let use_it = format!(
        "on a manager, `docker network create -d {name}:latest --ipam-driver {name}:latest --attachable NETWORK`"
    );
    Ok(match done {
        Managed::Made => {
            format!("Docker runs the plugin {name}; when it does on all nodes: {use_it}")
        }
        Managed::Enabled => format!("Docker runs the plugin {name} again"),
        Managed::Unchanged => {
            format!("Docker runs a plugin {name} already; to replace it, remove it first (--undo)")
        }
        Managed::Removed => format!("Docker has the plugin {name} no more"),
        Managed::Absent => format!("Docker has no plugin {name}"),
    })
}

/// Has a running dockerd read its configuration, and waits until it did.
async fn taken(config: &Path, wanted: bool) -> Result<String, DockerSetupError> {
    let reloaded = setup::reload(Path::new(PID_FILE)).map_err(DockerSetupError::Reload)?;
    if !reloaded {
        return Ok("dockerd does not run here; it reads this when it starts".to_owned());
    }
    let daemon = Daemon::from(Path::new(DOCKER_SOCKET));
    for _ in 0..TRIES {
        if daemon.knows_runtime().await? == wanted {
            return Ok(if wanted { KNOWN } else { FORGOTTEN }.to_owned());
        }
        tokio::time::sleep(PAUSE).await;
    }
    if wanted {
        return Err(DockerSetupError::NotTaken(config.to_owned()));
    }
    // A runtime that is taken out stays known until dockerd starts again.
    Ok(FORGOTTEN_LATER.to_owned())
}

const HOST: &str = "DOCKER_HOST";
const BEFORE: &str = "ORIG_DOCKER_HOST";
const NO_RUNTIME: &str = "dockerd does not know the runtime \"weft\" yet: containers get on the network a moment after they started; run `weft setup docker` once, and they are on it before";
const KNOWN: &str =
    "dockerd knows the runtime: `docker run --runtime=weft` puts a container on the network";
const FORGOTTEN: &str = "dockerd knows the runtime no more";
const FORGOTTEN_LATER: &str = "dockerd knows the runtime until it starts again";
const READ_AT_START: &str = "dockerd reads the resolver when it starts: restart it, and new containers find names of other hosts";
const USUAL_RESOLVER: Ipv4Addr = Ipv4Addr::new(169, 254, 67, 83);
const USUAL_DOMAIN: &str = "weft.local";
const PID_FILE: &str = "/var/run/docker.pid";
const DOCKER_SOCKET: &str = "/var/run/docker.sock";
/// How often we look for what another process does within milliseconds.
const TRIES: usize = 30;
const PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    const PROXY: &str = "/run/weft/docker.sock";
    const OURS: &str = "unix:///run/weft/docker.sock";

    fn shell(current: Option<&str>, before: Option<&str>) -> String {
        led_to(Path::new(PROXY), current, before.map(str::to_owned)).shell
    }

    #[test]
    fn a_shell_is_led_to_the_proxy_and_what_was_before_is_kept() {
        let lead = format!("export DOCKER_HOST={OURS}");
        assert_eq!(shell(None, None), format!("{lead}\n"));
        let other = "tcp://h:2375";
        let kept = format!("{lead} ORIG_DOCKER_HOST={other}\n");
        assert_eq!(shell(Some(other), None), kept);
        assert_eq!(shell(Some(OURS), Some(other)), kept);
        let odd = format!("{lead} ORIG_DOCKER_HOST='unix:///a b'\\''c'\n");
        assert_eq!(shell(Some("unix:///a b'c"), None), odd);
    }

    #[test]
    fn a_shell_gets_back_what_it_had() {
        let back = |current, before: Option<&str>| {
            let env = restored(Path::new(PROXY), current, before.map(str::to_owned));
            env.map(|env| env.shell)
        };
        assert_eq!(
            back(Some(OURS), None).unwrap(),
            "unset DOCKER_HOST ORIG_DOCKER_HOST\n"
        );
        assert_eq!(
            back(Some(OURS), Some("tcp://h:2375")).unwrap(),
            "export DOCKER_HOST=tcp://h:2375; unset ORIG_DOCKER_HOST\n"
        );
        assert!(matches!(
            back(None, Some("x")),
            Err(EnvError::NothingToRestore)
        ));
        assert!(matches!(
            back(Some("tcp://h"), None),
            Err(EnvError::NothingToRestore)
        ));
    }
}
