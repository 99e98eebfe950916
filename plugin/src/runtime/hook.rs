//! `weft hook`: what runc runs before a container's first process and after its last.
//!
//! `attach` puts the container on the network, by the same code as `weft attach`; if that cannot be
//! done in time the container does not start, and the reason is on standard error, where Docker shows
//! it. `free` takes the names back, and the addresses too if nobody will start the container again: a
//! container that stays, stopped, keeps its address for its next start.
//!
//! Invariant: a hook ends, whatever the router, other peers or Docker do.

use std::error::Error;
use std::ffi::OsString;
use std::fs::File;
use std::future::Future;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;
use tokio::time::Instant;
use weft_api::types::{Network, RemoveNames};
use weft_api::{CallError, Client, ContainerId, ContainerIdError, routes};
use weft_net::netns::NetNs;
use weft_wire::NetworkKeyError;

use super::bundle::{ATTACH, Bundle, BundleError, FREE, addresses, network};
use super::record::{RESOLV_CONF, Record};
use super::resolv_conf::with_resolver;
use crate::attach::{AttachError, AttachOptions, IFNAME, attach_found};
use crate::{Container, DockerNames, ParseAddressError, Target};

/// Why a hook did not do its work.
#[derive(Debug, Error)]
enum HookError {
    #[error("a hook is called by runc, as `weft hook attach` or `weft hook free`")]
    Usage,
    #[error("cannot read the container's state from standard input: {0}")]
    Input(#[source] io::Error),
    #[error(
        "the container's state on standard input is not what the OCI runtime specification says: {0}"
    )]
    State(#[source] serde_json::Error),
    #[error("{0}")]
    Bundle(#[from] BundleError),
    #[error("{0}")]
    Id(#[from] ContainerIdError),
    #[error("WEFT_CIDR: {0}")]
    Address(#[from] ParseAddressError),
    #[error("WEFT_NETWORK: {0}")]
    Network(#[from] NetworkKeyError),
    #[error("cannot open the container's network namespace: {0}")]
    Namespace(#[source] io::Error),
    #[error("{0}")]
    Attach(#[from] AttachError),
    #[error("{0}")]
    Call(#[from] CallError),
    #[error("cannot start: {0}")]
    Runtime(#[source] io::Error),
}

/// The container, as runc describes it: "State" in the OCI runtime specification.
#[derive(Debug, Deserialize)]
struct State {
    id: String,
    /// Its first process; none after the end.
    pid: Option<u32>,
    bundle: PathBuf,
}

/// Runs a hook; the arguments are which, and the router's socket if it is not the usual one.
pub fn run(arguments: &[OsString]) -> ExitCode {
    match try_run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let hint = hint(&error).map(|hint| format!(" ({hint})"));
            let _ = writeln!(io::stderr(), "weft: {error}{}", hint.unwrap_or_default());
            ExitCode::FAILURE
        }
    }
}

/// What the router says can be done about it.
fn hint(error: &HookError) -> Option<&str> {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(call) = error.downcast_ref::<CallError>() {
            return call.hint();
        }
        cause = error.source();
    }
    None
}

fn try_run(arguments: &[OsString]) -> Result<(), HookError> {
    let mut arguments = arguments.iter();
    let which = arguments.next().and_then(|word| word.to_str());
    let socket = arguments
        .next()
        .map_or(Path::new(routes::DEFAULT_SOCKET), Path::new);
    let client = Client::new(socket);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(HookError::Runtime)?;
    match which {
        Some(ATTACH) => runtime.block_on(attach(&client, state()?)),
        Some(FREE) => runtime.block_on(free(&client, state()?)),
        Some(_) | None => Err(HookError::Usage),
    }
}

fn state() -> Result<State, HookError> {
    let mut text = Vec::new();
    let bounded = io::stdin().take(MAX_STATE);
    { bounded }
        .read_to_end(&mut text)
        .map_err(HookError::Input)?;
    serde_json::from_slice(&text).map_err(HookError::State)
}

async fn attach(client: &Client, state: State) -> Result<(), HookError> {
    let bundle = Bundle::open(&state.bundle)?;
    let record = Record::of(Some(&bundle), &state.id);
    let ns = NetNs::of_pid(state.pid.unwrap_or_default()).map_err(HookError::Namespace)?;
    if on_plugin_network(&ns).await {
        return Ok(());
    }
    let addresses = addresses(bundle.weft_cidr())?;
    let wanted = network(bundle.weft_network())?;
    let named_by_host = || bundle.hostname().map(|hostname| named(hostname, &state.id));
    let container = Container {
        id: ContainerId::new(&state.id)?,
        ns: Some(ns),
        docker: record
            .as_ref()
            .map(|r| r.names.clone())
            .or_else(named_by_host),
    };
    let network = until_there(|| client.network()).await?;
    let options = AttachOptions {
        patience: Some(PATIENCE),
        network: wanted,
        ..AttachOptions::default()
    };
    let target = Target::Docker(container.id.short().to_owned());
    attach_found(client, &target, &container, &addresses, &options).await?;
    if let Some(record) = record {
        point_at_resolver(&bundle, &record, &network);
    }
    Ok(())
}

/// Whether Docker's plugin put the container on the network already: its interfaces are numbered.
async fn on_plugin_network(ns: &NetNs) -> bool {
    let views = weft_net::attach::inspect(ns, IFNAME).await;
    views.is_ok_and(|views| views.iter().any(|view| view.name != IFNAME))
}

/// A container of which no more is known than its host name.
fn named(hostname: &str, id: &str) -> DockerNames {
    let made_up = id.starts_with(hostname);
    DockerNames {
        name: if made_up {
            id.chars().take(12).collect()
        } else {
            hostname.to_owned()
        },
        ..DockerNames::default()
    }
}

/// Waits for a router that is being started anew: Docker does not try again to start a container
/// whose hook failed, not even with a restart policy.
async fn until_there<T, F>(mut call: impl FnMut() -> F) -> Result<T, CallError>
where
    F: Future<Output = Result<T, CallError>>,
{
    let deadline = Instant::now() + ABSENCE;
    loop {
        match call().await {
            Err(CallError::NotRunning { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(POLL).await;
            }
            done => return done,
        }
    }
}

/// Makes names resolve in a container whose resolvers nobody chose. Best effort: without it, it can
/// still reach others by address.
fn point_at_resolver(bundle: &Bundle, record: &Record, network: &Network) {
    let (Some(resolver), Some(domain), false) = (network.dns, &network.domain, record.chose_dns)
    else {
        return;
    };
    let Some(path) = bundle.mounted_from(RESOLV_CONF) else {
        return;
    };
    let rewrite = || -> io::Result<()> {
        let text = std::fs::read_to_string(path)?;
        if let Some(fresh) = with_resolver(&text, resolver, domain, record.chose_search) {
            // The container has this very file mounted, so it is written where it is.
            File::options()
                .write(true)
                .truncate(true)
                .open(path)?
                .write_all(fresh.as_bytes())?;
        }
        Ok(())
    };
    if let Err(error) = rewrite() {
        let _ = writeln!(
            io::stderr(),
            "weft: names will not resolve: cannot change {}: {error}",
            path.display()
        );
    }
}

async fn free(client: &Client, state: State) -> Result<(), HookError> {
    let bundle = Bundle::open(&state.bundle).ok();
    let record = Record::of(bundle.as_ref(), &state.id);
    let container = ContainerId::new(&state.id)?;
    let names = RemoveNames {
        name: None,
        container: Some(container.clone()),
        addr: None,
    };
    match client.remove_names(&names).await {
        Ok(_) | Err(CallError::Refused { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    match client.unbind(&container).await {
        Ok(()) | Err(CallError::Refused { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    // Of a container nobody else keeps a record of, nobody will tell us that it is gone.
    if record.is_none_or(|record| record.auto_remove) {
        client.free_all(&container).await?;
    }
    Ok(())
}

/// How long an address may take: other peers may have to be asked for space first.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long there may be no router: a restart takes a second or two.
const ABSENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);
/// More than any state is long, annotations included.
const MAX_STATE: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::testing::{FakeRouter, cidr, container, on_a_host, on_interface};

    const ID: &str = "1f0e9c2b7a5d4e3f1f0e9c2b7a5d4e3f1f0e9c2b7a5d4e3f1f0e9c2b7a5d4e3f";

    /// A container of Docker's that is being created: its directory with what dockerd writes there,
    /// which is its bundle too.
    fn docker_container(auto_remove: bool, env: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::TempDir::new().unwrap();
        let own = dir.path().join(ID);
        fs::create_dir(&own).unwrap();
        let write = |name: &str, text: String| fs::write(own.join(name), text).unwrap();
        let config = json!({ "Name": "/app01", "Config": { "Hostname": &ID[..12] } });
        write("config.v2.json", config.to_string());
        write(
            "hostconfig.json",
            json!({ "AutoRemove": auto_remove }).to_string(),
        );
        write("resolv.conf", "nameserver 192.0.2.1\n".to_owned());
        let mount = json!({ "destination": RESOLV_CONF, "source": own.join("resolv.conf") });
        let bundle = json!({
            "process": { "env": env }, "hostname": &ID[..12], "mounts": [mount],
            "linux": { "namespaces": [{ "type": "network" }] },
        });
        write("config.json", bundle.to_string());
        dir
    }

    fn state(dir: &tempfile::TempDir, pid: Option<u32>) -> State {
        State {
            id: ID.to_owned(),
            pid,
            bundle: dir.path().join(ID),
        }
    }

    /// A process in a namespace of its own, until it is dropped.
    struct Sleeper(std::process::Child);

    impl Sleeper {
        fn in_namespace(ns: &NetNs) -> Self {
            let start = || std::process::Command::new("sleep").arg("60").spawn();
            Self(weft_net::netns::run_in(ns, start).unwrap().unwrap())
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    #[test]
    fn a_container_is_attached_before_it_starts_and_freed_when_it_is_gone() {
        on_a_host(|| async {
            let router = FakeRouter::start();
            let ns = container().ns;
            let process = Sleeper::in_namespace(&ns);
            let dir = docker_container(true, &["WEFT_CIDR=net:default 10.99.0.5/24"]);
            let pid = Some(process.0.id());
            attach(&router.client, state(&dir, pid)).await.unwrap();
            let both = vec![cidr("10.32.0.1/16"), cidr("10.99.0.5/24")];
            assert_eq!(on_interface(&ns).await, Some(both));
            let names: Vec<String> = router.names().into_iter().map(|(name, _)| name).collect();
            assert_eq!(names, ["app01.weft.local", "app01.weft.local"]);
            let resolv_conf = fs::read_to_string(dir.path().join(ID).join("resolv.conf")).unwrap();
            assert_eq!(resolv_conf, "search weft.local\nnameserver 169.254.67.83\n");
            free(&router.client, state(&dir, None)).await.unwrap();
            assert_eq!((router.held(), router.names()), (vec![], vec![]));
        });
    }

    #[test]
    fn a_container_that_stays_keeps_its_address_but_not_its_name() {
        on_a_host(|| async {
            let router = FakeRouter::start();
            let ns = container().ns;
            let process = Sleeper::in_namespace(&ns);
            let dir = docker_container(false, &[]);
            let pid = Some(process.0.id());
            attach(&router.client, state(&dir, pid)).await.unwrap();
            free(&router.client, state(&dir, None)).await.unwrap();
            assert_eq!(router.held(), [cidr("10.32.0.1/16")]);
            assert_eq!((router.names(), router.bindings()), (vec![], vec![]));
            attach(&router.client, state(&dir, pid)).await.unwrap();
            assert_eq!(router.held(), [cidr("10.32.0.1/16")]);
        });
    }

    #[test]
    fn a_container_on_a_plugin_network_is_left_as_it_is() {
        on_a_host(|| async {
            let router = FakeRouter::start();
            let ns = container().ns;
            let links = weft_net::Netlink::new().unwrap();
            links.add_veth("theirs", "ethwe0").await.unwrap();
            links.set_ns("ethwe0", &ns).await.unwrap();
            let process = Sleeper::in_namespace(&ns);
            let dir = docker_container(false, &[]);
            attach(&router.client, state(&dir, Some(process.0.id())))
                .await
                .unwrap();
            assert_eq!(router.held(), []);
        });
    }

    #[test]
    fn wrong_addresses_are_said_with_the_variable_they_are_in() {
        on_a_host(|| async {
            let router = FakeRouter::start();
            let ns = container().ns;
            let process = Sleeper::in_namespace(&ns);
            let dir = docker_container(false, &["WEFT_CIDR=10.32.0.1"]);
            let done = attach(&router.client, state(&dir, Some(process.0.id()))).await;
            let error = done.unwrap_err().to_string();
            assert!(
                error.starts_with("WEFT_CIDR: 10.32.0.1 has no prefix length"),
                "{error}"
            );
        });
    }

    #[tokio::test(start_paused = true)]
    async fn a_router_that_is_away_is_waited_for_a_while() {
        let absent = Client::new("/nonexistent/weft.sock");
        let error = until_there(|| absent.network()).await.unwrap_err();
        assert!(matches!(error, CallError::NotRunning { .. }), "{error}");
    }
}
