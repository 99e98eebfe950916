//! What is asked of Docker: which process a container is, and what it is called.
//!
//! Only a local unix socket will do: the namespaces of a container on another host are out of reach.
//! Nothing here runs inside a call that Docker makes to a plugin; it would wait for itself.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use bollard::errors::Error as BollardError;
use bollard::models::{
    ContainerInspectResponse, ContainerSummary, ContainerSummaryStateEnum, EndpointSettings,
    Network, NetworkCreateRequest,
};
use bollard::query_parameters::{
    CreatePluginOptionsBuilder, EnablePluginOptionsBuilder, EventsOptionsBuilder,
    ListContainersOptionsBuilder,
};
use futures_util::StreamExt;
use thiserror::Error;
use weft_api::{ContainerId, ContainerIdError};

use crate::DockerNames;

/// A Docker daemon on this host.
#[derive(Debug)]
pub struct Docker {
    api: bollard::Docker,
    socket: PathBuf,
}

/// What Docker says of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerContainer {
    /// Its whole id.
    pub id: ContainerId,
    /// What it is called.
    pub names: DockerNames,
    /// Its first process, while it runs.
    pub pid: Option<u32>,
}

/// What Docker says of each container in a list of all.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Its whole id.
    pub id: ContainerId,
    /// Its name, which may change.
    pub name: String,
    /// Whether it runs.
    pub running: bool,
    /// Where it is on Docker's networks.
    pub endpoints: Vec<Endpoint>,
}

/// A container's interface to one of Docker's networks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Docker's id for it.
    pub id: String,
    /// Of either family.
    pub addresses: Vec<IpAddr>,
}

/// Why Docker does not tell.
#[derive(Debug, Error)]
pub enum DockerError {
    /// There is no daemon.
    #[error("there is no Docker on this host ({} does not exist): name the container as pid:N or netns:NAME", socket.display())]
    Absent {
        /// Where its socket would be.
        socket: PathBuf,
    },
    /// The daemon is somewhere else.
    #[error(
        "DOCKER_HOST={0} is not a unix socket (unix:///PATH): containers can be attached on their own host only"
    )]
    Remote(String),
    /// No such container.
    #[error("no container is called {0}: see `docker ps`")]
    NoContainer(String),
    /// The daemon answered something else than it should.
    #[error("Docker's answer about {name} has no {field}")]
    Incomplete {
        /// The container asked for.
        name: String,
        /// What is missing.
        field: &'static str,
    },
    /// The id is not one we can keep.
    #[error("{0}")]
    Id(#[from] ContainerIdError),
    /// The daemon could not be asked.
    #[error("cannot ask Docker on {}: {source}", socket.display())]
    Api {
        /// Its socket.
        socket: PathBuf,
        /// What went wrong.
        source: BollardError,
    },
}

impl Docker {
    /// Opens the daemon that `DOCKER_HOST` or the usual socket leads to.
    ///
    /// # Errors
    /// There is none, it is remote, or it does not answer.
    pub async fn open() -> Result<Self, DockerError> {
        let host = std::env::var("DOCKER_HOST").ok();
        Self::open_at(&socket(host.as_deref())?).await
    }

    /// Opens the daemon on this socket.
    ///
    /// # Errors
    /// There is none, or it does not answer.
    pub async fn open_at(socket: &Path) -> Result<Self, DockerError> {
        if !socket.exists() {
            let socket = socket.to_owned();
            return Err(DockerError::Absent { socket });
        }
        let failed = |source| DockerError::Api {
            socket: socket.to_owned(),
            source,
        };
        let path = socket.to_string_lossy();
        let api = bollard::Docker::connect_with_unix(
            &path,
            TIMEOUT_SECONDS,
            bollard::API_DEFAULT_VERSION,
        )
        .map_err(failed)?;
        // A daemon refuses versions newer than its own.
        let api = api.negotiate_version().await.map_err(failed)?;
        let socket = socket.to_owned();
        Ok(Self { api, socket })
    }

    /// Looks a container up by name or id; it need not run.
    ///
    /// # Errors
    /// There is no such container, or the daemon's answer is of no use.
    pub async fn inspect(&self, name: &str) -> Result<DockerContainer, DockerError> {
        let found = self.api.inspect_container(name, None).await;
        let found = found.map_err(|source| {
            if is_not_found(&source) {
                return DockerError::NoContainer(name.to_owned());
            }
            self.failed(source)
        })?;
        container(name, found)
    }

    /// Ids of all running containers.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub async fn running(&self) -> Result<Vec<ContainerId>, DockerError> {
        let all = self.api.list_containers(None).await;
        let all = all.map_err(|source| self.failed(source))?;
        let id = |summary: ContainerSummary| summary.id;
        let ids = all.into_iter().filter_map(id);
        ids.map(|id| Ok(ContainerId::new(id)?)).collect()
    }

    /// All containers, whether they run or not.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub async fn containers(&self) -> Result<Vec<Seen>, DockerError> {
        let options = ListContainersOptionsBuilder::new().all(true).build();
        let all = self.api.list_containers(Some(options)).await;
        let all = all.map_err(|source| self.failed(source))?;
        all.into_iter().filter_map(seen).collect()
    }

    /// Calls `heard` whenever a container came, went, was named or connected anew; ends when the daemon does.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub async fn listen(&self, heard: impl Fn()) -> Result<(), DockerError> {
        let list = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let filters: HashMap<String, Vec<String>> = HashMap::from([
            ("type".to_owned(), list(&["container", "network"])),
            ("event".to_owned(), list(EVENTS)),
        ]);
        let options = EventsOptionsBuilder::new().filters(&filters).build();
        let mut events = std::pin::pin!(self.api.events(Some(options)));
        while let Some(event) = events.next().await {
            event.map_err(|source| self.failed(source))?;
            heard();
        }
        Ok(())
    }

    /// Which driver a network of this name has; none if there is no such network.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub async fn driver_of_network(&self, name: &str) -> Result<Option<String>, DockerError> {
        match self.api.inspect_network(name, None).await {
            Ok(found) => Ok(Some(found.driver.unwrap_or_default())),
            Err(source) if is_not_found(&source) => Ok(None),
            Err(source) => Err(self.failed(source)),
        }
    }

    /// All networks of a driver.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub async fn networks(&self, driver: &str) -> Result<Vec<Network>, DockerError> {
        let listed = self.api.list_networks(None).await;
        let mut networks = listed.map_err(|source| self.failed(source))?;
        networks.retain(|network| network.driver.as_deref() == Some(driver));
        Ok(networks)
    }

    /// Removes a network that no container is on.
    ///
    /// # Errors
    /// The daemon does not answer, or a container is on it.
    pub async fn remove_network(&self, name: &str) -> Result<(), DockerError> {
        let removed = self.api.remove_network(name).await;
        removed.map_err(|source| self.failed(source))
    }

    /// Makes a network.
    ///
    /// # Errors
    /// The daemon does not answer, or its driver refuses.
    pub async fn create_network(&self, network: NetworkCreateRequest) -> Result<(), DockerError> {
        let created = self.api.create_network(network).await;
        created.map(drop).map_err(|source| self.failed(source))
    }

    /// Whether Docker runs its plugin of this name; none if it has none.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub async fn plugin_is_enabled(&self, name: &str) -> Result<Option<bool>, DockerError> {
        match self.api.inspect_plugin(name).await {
            Ok(found) => Ok(Some(found.enabled)),
            Err(source) if is_not_found(&source) => Ok(None),
            Err(source) => Err(self.failed(source)),
        }
    }

    /// Makes a plugin of an archive with its `config.json` and its `rootfs`.
    ///
    /// # Errors
    /// The daemon does not answer, or refuses.
    pub async fn create_plugin(&self, name: &str, archive: Vec<u8>) -> Result<(), DockerError> {
        let options = CreatePluginOptionsBuilder::new().name(name).build();
        let body = bollard::body_full(archive.into());
        let made = self.api.create_plugin(options, body).await;
        made.map_err(|source| self.failed(source))
    }

    /// Has Docker run a plugin.
    ///
    /// # Errors
    /// The daemon does not answer, or the plugin does not come up.
    pub async fn enable_plugin(&self, name: &str) -> Result<(), DockerError> {
        // Docker takes no call without it.
        let options = EnablePluginOptionsBuilder::new().timeout(PLUGIN_START_SECONDS);
        let enabled = self.api.enable_plugin(name, Some(options.build())).await;
        enabled.map_err(|source| self.failed(source))
    }

    /// Has Docker end a plugin.
    ///
    /// # Errors
    /// The daemon does not answer, or networks use the plugin.
    pub async fn disable_plugin(&self, name: &str) -> Result<(), DockerError> {
        let disabled = self.api.disable_plugin(name, None).await;
        disabled.map_err(|source| self.failed(source))
    }

    /// Has Docker forget a plugin that does not run.
    ///
    /// # Errors
    /// The daemon does not answer, or refuses.
    pub async fn remove_plugin(&self, name: &str) -> Result<(), DockerError> {
        let removed = self.api.remove_plugin(name, None).await;
        removed.map(drop).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: BollardError) -> DockerError {
        DockerError::Api {
            socket: self.socket.clone(),
            source,
        }
    }
}

const fn is_not_found(error: &BollardError) -> bool {
    matches!(
        error,
        BollardError::DockerResponseServerError {
            status_code: 404,
            ..
        }
    )
}

/// The socket a value of `DOCKER_HOST` means.
fn socket(docker_host: Option<&str>) -> Result<PathBuf, DockerError> {
    match docker_host {
        None | Some("") => Ok(PathBuf::from(DEFAULT_SOCKET)),
        Some(host) => match host.strip_prefix("unix://") {
            Some(path) => Ok(PathBuf::from(path)),
            None => Err(DockerError::Remote(host.to_owned())),
        },
    }
}

/// A container in a list; none if it has no id.
fn seen(summary: ContainerSummary) -> Option<Result<Seen, DockerError>> {
    let id = match ContainerId::new(summary.id?) {
        Ok(id) => id,
        Err(error) => return Some(Err(error.into())),
    };
    let networks = summary.network_settings.and_then(|n| n.networks);
    let endpoint = |end: EndpointSettings| {
        let addresses = [end.ip_address, end.global_ipv6_address]
            .into_iter()
            .flatten();
        Endpoint {
            id: end.endpoint_id.unwrap_or_default(),
            addresses: addresses.filter_map(|addr| addr.parse().ok()).collect(),
        }
    };
    let mut endpoints: Vec<_> = { networks.unwrap_or_default().into_values() }
        .map(endpoint)
        .collect();
    endpoints.sort();
    Some(Ok(Seen {
        id,
        name: summary
            .names
            .unwrap_or_default()
            .into_iter()
            .next()
            .unwrap_or_default(),
        running: summary.state == Some(ContainerSummaryStateEnum::RUNNING),
        endpoints,
    }))
}

pub(crate) fn container(
    name: &str,
    found: ContainerInspectResponse,
) -> Result<DockerContainer, DockerError> {
    let missing = |field| DockerError::Incomplete {
        name: name.to_owned(),
        field,
    };
    let id = found.id.ok_or_else(|| missing("id"))?;
    let state = found.state.ok_or_else(|| missing("state"))?;
    let full_name = found.name.ok_or_else(|| missing("name"))?;
    let running = state.running.unwrap_or(false);
    let pid = state.pid.and_then(|pid| u32::try_from(pid).ok());
    let config = found.config.unwrap_or_default();
    let networks = found.network_settings.and_then(|n| n.networks);
    let ends = networks.unwrap_or_default().into_values();
    let mut labels = config.labels.unwrap_or_default();
    let services = SERVICES.iter().filter_map(|label| labels.remove(*label));
    let services: Vec<_> = services.collect();
    let aliases = ends.flat_map(|end| end.aliases.unwrap_or_default());
    let told = Told {
        id: &id,
        name: &full_name,
        hostname: config.hostname.unwrap_or_default(),
        domain: config.domainname.unwrap_or_default(),
        aliases: aliases.chain(services).collect(),
    };
    Ok(DockerContainer {
        names: told.names(),
        id: ContainerId::new(id)?,
        pid: pid.filter(|pid| running && *pid > 0),
    })
}

/// What Docker tells of the names of a container, in whatever way it does.
pub(crate) struct Told<'a> {
    pub(crate) id: &'a str,
    /// With a slash before it.
    pub(crate) name: &'a str,
    /// The first 12 digits of the id if nobody chose one.
    pub(crate) hostname: String,
    pub(crate) domain: String,
    /// Docker adds the first 12 digits of the id.
    pub(crate) aliases: Vec<String>,
}

impl Told<'_> {
    /// Those of them that somebody chose.
    pub(crate) fn names(self) -> DockerNames {
        let chosen = |name: &String| !name.is_empty() && !self.id.starts_with(name.as_str());
        let hostname = Some(self.hostname).filter(chosen);
        let mut aliases = self.aliases;
        aliases.retain(chosen);
        DockerNames {
            name: self.name.trim_start_matches('/').to_owned(),
            hostname: match self.domain.as_str() {
                "" => hostname,
                domain => hostname.map(|host| format!("{host}.{domain}")),
            },
            aliases,
        }
    }
}

/// The labels compose and a swarm put the name of a service in.
pub(crate) const SERVICES: [&str; 2] = [
    "com.docker.compose.service",
    "com.docker.swarm.service.name",
];
/// What happens to containers that a name may hang on.
const EVENTS: &[&str] = &[
    "start",
    "die",
    "destroy",
    "rename",
    "unpause",
    "connect",
    "disconnect",
];
const DEFAULT_SOCKET: &str = "/var/run/docker.sock";
/// How long a plugin may take until it answers Docker.
const PLUGIN_START_SECONDS: i32 = 20;
/// How long Docker may take for one answer: it is slow while it starts many containers.
const TIMEOUT_SECONDS: u64 = 30;

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::extract::Path as Segments;
    use axum::http::StatusCode;
    use axum::response::{IntoResponse, Json, Response};
    use axum::routing::get;
    use serde_json::json;
    use tempfile::TempDir;
    use tokio::net::UnixListener;

    use super::*;

    const ID: &str = "1f0e9c2b7a5d4e3f1f0e9c2b7a5d4e3f1f0e9c2b7a5d4e3f1f0e9c2b7a5d4e3f";

    async fn inspect(Segments(name): Segments<String>) -> Response {
        let (running, pid, domain) = match name.as_str() {
            "web" => (true, 4242, "weft.local"),
            "halted" => (false, 0, ""),
            _ => {
                let no = json!({ "message": format!("No such container: {name}") });
                return (StatusCode::NOT_FOUND, Json(no)).into_response();
            }
        };
        Json(json!({
            "Id": ID,
            "Name": format!("/{name}"),
            "State": { "Running": running, "Pid": pid },
            "Config": {
                "Hostname": "www",
                "Domainname": domain,
                "Labels": { SERVICES[0]: "frontend", SERVICES[1]: "web" },
            },
            "NetworkSettings": { "Networks": { "n": { "Aliases": ["w", &ID[..12]] } } },
        }))
        .into_response()
    }

    /// A daemon of an older version, with two containers.
    fn daemon() -> (TempDir, PathBuf) {
        let version = json!({ "ApiVersion": "1.41", "MinAPIVersion": "1.12" });
        let routes = Router::new()
            .route("/version", get(|| async move { Json(version) }))
            .route("/containers/{name}/json", get(inspect))
            .route(
                "/containers/json",
                get(|| async { Json(json!([{ "Id": ID }])) }),
            );
        // Docker answers with and without a version before the path.
        let routes = routes.clone().nest("/v1.41", routes);
        let dir = TempDir::new().unwrap();
        let socket = dir.path().join("docker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move { axum::serve(listener, routes).await });
        (dir, socket)
    }

    #[tokio::test]
    async fn a_container_is_found_with_its_process_and_names() {
        let (_dir, socket) = daemon();
        let docker = Docker::open_at(&socket).await.unwrap();
        let web = docker.inspect("web").await.unwrap();
        let id = ContainerId::new(ID).unwrap();
        assert_eq!((&web.id, web.pid), (&id, Some(4242)));
        let named = DockerNames {
            name: "web".to_owned(),
            hostname: Some("www.weft.local".to_owned()),
            aliases: ["w", "frontend", "web"].map(str::to_owned).to_vec(),
        };
        assert_eq!(web.names, named);
        let halted = docker.inspect("halted").await.unwrap();
        assert_eq!(
            (halted.pid, halted.names.hostname.as_deref()),
            (None, Some("www"))
        );
        assert_eq!(docker.running().await.unwrap(), [id]);
    }

    #[tokio::test]
    async fn a_missing_container_is_said_by_its_name() {
        let (_dir, socket) = daemon();
        let docker = Docker::open_at(&socket).await.unwrap();
        let error = docker.inspect("wbe").await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "no container is called wbe: see `docker ps`"
        );
    }

    #[tokio::test]
    async fn without_docker_the_other_forms_are_named() {
        let error = Docker::open_at(Path::new("/nonexistent/docker.sock")).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains("pid:N or netns:NAME"), "{error}");
    }

    #[test]
    fn names_docker_made_of_the_id_are_left_out() {
        let told = |hostname: &str| Told {
            id: ID,
            name: "/web",
            hostname: hostname.to_owned(),
            domain: String::new(),
            aliases: vec![ID[..12].to_owned()],
        };
        assert_eq!(told(&ID[..12]).names().hostname, None);
        assert_eq!(told("").names().hostname, None);
        let chosen = told("1f0e9c2b7a5f").names();
        assert_eq!(chosen.hostname.as_deref(), Some("1f0e9c2b7a5f"));
        assert!(chosen.aliases.is_empty());
    }

    #[test]
    fn only_local_daemons_will_do() {
        assert_eq!(socket(None).unwrap(), Path::new(DEFAULT_SOCKET));
        assert_eq!(
            socket(Some("unix:///x/d.sock")).unwrap(),
            Path::new("/x/d.sock")
        );
        assert!(matches!(
            socket(Some("tcp://h:2375")),
            Err(DockerError::Remote(_))
        ));
    }
}
