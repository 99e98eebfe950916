//! A Docker that says what a test wants, against a router that keeps books.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::mpsc;

use super::*;
use crate::testing::{FakeRouter, cidr, on_a_host};

const WEB: &str = "1f0e9c2b7a5d4e3f1f0e9c2b7a5d4e3f1f0e9c2b7a5d4e3f1f0e9c2b7a5d4e3f";
const DB: &str = "2f0e9c2b7a5d4e3f1f0e9c2b7a5d4e3f1f0e9c2b7a5d4e3f1f0e9c2b7a5d4e3f";
const ENDPOINT: &str = "cb91aa3708f1cb91aa3708f1cb91aa3708f1cb91aa3708f1cb91aa3708f1cb91";

/// What Docker has, and where it tells of events.
#[derive(Default)]
struct Contents {
    containers: BTreeMap<&'static str, Value>,
    events: Option<mpsc::Receiver<Bytes>>,
}

struct FakeDocker {
    contents: Arc<Mutex<Contents>>,
    socket: PathBuf,
    _dir: TempDir,
}

impl FakeDocker {
    fn start() -> Self {
        let contents = Arc::new(Mutex::new(Contents::default()));
        let version = json!({ "ApiVersion": "1.41", "MinAPIVersion": "1.12" });
        let routes = Router::new()
            .route("/version", get(|| async move { Json(version) }))
            .route("/containers/json", get(list))
            .route("/containers/{id}/json", get(inspect))
            .route("/events", get(events))
            .with_state(Arc::clone(&contents));
        let routes = routes.clone().nest("/v1.41", routes);
        let dir = TempDir::new().unwrap();
        let socket = dir.path().join("docker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self {
            contents,
            socket,
            _dir: dir,
        }
    }

    async fn open(&self) -> Docker {
        Docker::open_at(&self.socket).await.unwrap()
    }

    /// A container on a network of Docker's, or on none.
    fn put(&self, id: &'static str, name: &str, running: bool, address: &str) {
        let end = json!({ "EndpointID": ENDPOINT, "IPAddress": address, "Aliases": ["www"] });
        let networks = if address.is_empty() {
            json!({})
        } else {
            json!({ "n": end })
        };
        let container = json!({
            "Id": id, "Names": [format!("/{name}")], "Name": format!("/{name}"),
            "State": if running { "running" } else { "exited" },
            "Config": { "Hostname": &id[..12] }, "NetworkSettings": { "Networks": networks },
        });
        self.contents
            .lock()
            .unwrap()
            .containers
            .insert(id, container);
    }

    fn remove(&self, id: &str) {
        self.contents.lock().unwrap().containers.remove(id);
    }
}

type Shared = State<Arc<Mutex<Contents>>>;

async fn list(State(contents): Shared) -> Json<Vec<Value>> {
    Json(
        contents
            .lock()
            .unwrap()
            .containers
            .values()
            .cloned()
            .collect(),
    )
}

async fn inspect(State(contents): Shared, Path(id): Path<String>) -> Response {
    let Some(mut found) = contents
        .lock()
        .unwrap()
        .containers
        .get(id.as_str())
        .cloned()
    else {
        let no = json!({ "message": "No such container" });
        return (StatusCode::NOT_FOUND, Json(no)).into_response();
    };
    found["State"] = json!({ "Running": found["State"] == "running", "Pid": 0 });
    Json(found).into_response()
}

async fn events(State(contents): Shared) -> Body {
    let events = contents.lock().unwrap().events.take().unwrap();
    Body::from_stream(stream::unfold(events, |mut events| async {
        let next = events.recv().await?;
        Some((Ok::<_, std::io::Error>(next), events))
    }))
}

/// The interface of an endpoint or of an attached container, as far as the host sees it.
async fn interface(name: &str, note: &str) {
    let links = Netlink::new().unwrap();
    links.add_veth(name, "other").await.unwrap();
    links.set_note(name, note).await.unwrap();
}

fn id(text: &str) -> ContainerId {
    ContainerId::new(text).unwrap()
}

/// Looks, and looks again when what was amiss then is amiss for good.
async fn look_twice(watch: &mut Watch, docker: &Docker) {
    watch.look(docker).await.unwrap();
    tokio::time::pause();
    tokio::time::advance(GRACE).await;
    tokio::time::resume();
    watch.look(docker).await.unwrap();
}

#[test]
fn a_container_on_one_of_dockers_networks_has_its_names_as_long_as_it_runs() {
    on_a_host(|| async {
        let (router, docker) = (FakeRouter::start(), FakeDocker::start());
        let mut watch = Watch::new(router.client.clone());
        docker.put(WEB, "web", true, "10.32.0.7");
        let api = docker.open().await;
        // Its network is another driver's: there is no interface of ours.
        watch.look(&api).await.unwrap();
        assert_eq!(router.names(), []);
        interface(&host_end(ENDPOINT).unwrap(), "10.32.0.7/16").await;
        for _ in 0..2 {
            watch.look(&api).await.unwrap();
            let addr = IpAddr::from([10, 32, 0, 7]);
            let both = ["web.weft.local", "www.weft.local"].map(|name| (name.to_owned(), addr));
            assert_eq!(router.names(), both);
        }
        docker.put(WEB, "store", true, "10.32.0.7");
        watch.look(&api).await.unwrap();
        let names: BTreeSet<_> = router.names().into_iter().map(|(name, _)| name).collect();
        assert_eq!(
            names,
            ["store.weft.local", "www.weft.local"]
                .map(str::to_owned)
                .into()
        );
        docker.put(WEB, "store", false, "");
        watch.look(&api).await.unwrap();
        assert_eq!(router.names(), []);
    });
}

#[test]
fn what_a_container_had_that_is_gone_is_taken_back_at_the_second_look() {
    on_a_host(|| async {
        let (router, docker) = (FakeRouter::start(), FakeDocker::start());
        let mut watch = Watch::new(router.client.clone());
        docker.put(WEB, "web", false, "");
        docker.put(DB, "db", false, "");
        let name = |label: &str, holder: &str, last| AddName {
            name: format!("{label}.weft.local"),
            container: id(holder),
            addr: [10, 32, 0, last].into(),
        };
        for (holder, address) in [
            (WEB, "10.32.0.1/16"),
            (DB, "10.32.0.2/16"),
            ("pid-7-7", "10.32.0.3/16"),
        ] {
            router
                .client
                .claim(&id(holder), cidr(address))
                .await
                .unwrap();
        }
        for record in [
            name("web", WEB, 1),
            name("db", DB, 2),
            name("p", "pid-7-7", 3),
        ] {
            router.client.add_name(&record).await.unwrap();
        }
        docker.remove(DB);
        let api = docker.open().await;
        watch.look(&api).await.unwrap();
        assert_eq!((router.names().len(), router.held().len()), (3, 3));
        look_twice(&mut watch, &api).await;
        // The one that is stopped keeps its address.
        let names: Vec<_> = router.names().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["p.weft.local"]);
        assert_eq!(router.held(), [cidr("10.32.0.1/16"), cidr("10.32.0.3/16")]);
    });
}

#[test]
fn a_container_that_docker_does_not_know_but_has_an_interface_is_somebody_elses() {
    on_a_host(|| async {
        let (router, docker) = (FakeRouter::start(), FakeDocker::start());
        let mut watch = Watch::new(router.client.clone());
        router
            .client
            .claim(&id(WEB), cidr("10.32.0.1/16"))
            .await
            .unwrap();
        interface("weftpl0", WEB).await;
        let api = docker.open().await;
        look_twice(&mut watch, &api).await;
        assert_eq!(router.held(), [cidr("10.32.0.1/16")]);
        Netlink::new().unwrap().del_link("weftpl0").await.unwrap();
        look_twice(&mut watch, &api).await;
        assert_eq!(router.held(), []);
    });
}

#[test]
fn each_event_leads_to_a_look_and_the_end_of_docker_to_a_pause() {
    on_a_host(|| async {
        let (router, docker) = (FakeRouter::start(), FakeDocker::start());
        let (tell, events) = mpsc::channel(1);
        docker.contents.lock().unwrap().events = Some(events);
        let mut watch = Watch::new(router.client.clone());
        let api = docker.open().await;
        interface(&host_end(ENDPOINT).unwrap(), "10.32.0.7/16").await;
        let listening = watch.until_events_end(&api);
        let happening = async {
            let named = async |count| {
                while router.names().len() != count {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            for (running, names) in [(true, 2), (false, 0), (true, 2)] {
                docker.put(WEB, "web", running, if running { "10.32.0.7" } else { "" });
                let event = json!({ "Type": "container", "Action": "start" });
                tell.send(format!("{event}\n").into()).await.unwrap();
                timeout(Duration::from_secs(10), named(names))
                    .await
                    .unwrap();
            }
            drop(tell);
        };
        let (ended, ()) = tokio::join!(listening, happening);
        assert!(matches!(ended, WatchError::Ended), "{ended}");
    });
}
