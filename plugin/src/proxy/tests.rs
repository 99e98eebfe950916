//! The proxy between a caller and a daemon that both speak plain bytes.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::*;
use crate::testing::FakeRouter;

/// What a daemon was asked: the head of each request, and its body.
type Asked = Arc<Mutex<Vec<(String, String)>>>;

/// A caller's connection to a proxy before a daemon that answers with what `reply` says; an answer of
/// 101 turns the connection into an echo.
struct Scene {
    asked: Asked,
    socket: PathBuf,
    /// None when it has gone.
    router: Option<FakeRouter>,
    _dir: TempDir,
}

impl Scene {
    fn start(reply: impl Fn(&str, &str) -> String + Send + Sync + 'static) -> Self {
        let dir = TempDir::new().unwrap();
        let (docker, socket) = (dir.path().join("d.sock"), dir.path().join("p.sock"));
        let asked = Asked::default();
        let listener = UnixListener::bind(&docker).unwrap();
        let (log, reply) = (Arc::clone(&asked), Arc::new(reply));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, Arc::clone(&log), Arc::clone(&reply)));
            }
        });
        let router = FakeRouter::start();
        let mut proxy = Proxy::new(Daemon::Unix(docker), router.client.clone());
        proxy.resolv_conf = dir.path().join("none");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(proxy.serve(listener));
        Self {
            asked,
            socket,
            router: Some(router),
            _dir: dir,
        }
    }

    async fn call(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        said
    }

    async fn create(&self, body: &Value) -> String {
        self.call(&post("/v1.41/containers/create?name=c1", &body.to_string()))
            .await
    }

    fn asked(&self) -> Vec<(String, String)> {
        self.asked.lock().unwrap().clone()
    }
}

async fn answer<R: Fn(&str, &str) -> String>(mut stream: UnixStream, log: Asked, reply: Arc<R>) {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    let (head, body) = loop {
        let n = stream.read(&mut buffer).await.unwrap_or_default();
        if n == 0 {
            return;
        }
        text.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let lower = head.to_ascii_lowercase();
            let length = lower.split("content-length: ").nth(1);
            let length = length.and_then(|l| l.lines().next()?.parse().ok());
            let chunked = lower.contains("chunked") && !body.ends_with("0\r\n\r\n");
            if body.len() >= length.unwrap_or(0) && !chunked {
                break (head.to_owned(), body.to_owned());
            }
        }
    };
    log.lock().unwrap().push((head.clone(), body.clone()));
    let said = reply(&head, &body);
    stream.write_all(said.as_bytes()).await.unwrap();
    if said.starts_with("HTTP/1.1 101") {
        let (mut from, mut to) = stream.split();
        tokio::io::copy(&mut from, &mut to).await.unwrap();
        to.shutdown().await.unwrap();
    }
}

fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

fn ok(body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Length: {length}\r\n\r\n{body}")
}

fn says(status: &str, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn what_is_not_our_business_goes_through_as_it_is() {
    let scene = Scene::start(|_, _| ok("OK"));
    let said = scene.call("GET /v1.41/containers/json?all=1 HTTP/1.1\r\nHost: docker\r\nX-Own: 1\r\nConnection: close\r\n\r\n").await;
    assert!(said.starts_with("HTTP/1.1 200 OK\r\n"), "{said}");
    assert!(
        said.contains("Api-Version: 1.41") && said.ends_with("\r\n\r\nOK"),
        "{said}"
    );
    let chunks = "POST /build?t=x HTTP/1.1\r\nHost: docker\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    assert!(scene.call(chunks).await.ends_with("OK"));
    let asked = scene.asked();
    assert!(
        asked[0]
            .0
            .starts_with("GET /v1.41/containers/json?all=1 HTTP/1.1\r\n")
    );
    assert!(asked[0].0.contains("X-Own: 1"), "{asked:?}");
    assert!(asked[1].1.contains("abc"), "{asked:?}");
}

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_both_ways_until_both_ends_have_ended() {
    let scene = Scene::start(|_, _| {
        "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n".to_owned()
    });
    let mut stream = UnixStream::connect(&scene.socket).await.unwrap();
    let attach = "POST /v1.41/containers/c1/attach?stream=1 HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n";
    stream.write_all(attach.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert!(head.contains("raw-stream"), "{head}");
    let bytes: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
    let (mut from, mut to) = stream.split();
    let write = async {
        to.write_all(&bytes).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let (_, read) = tokio::join!(write, from.read_to_end(&mut back));
    read.unwrap();
    assert!(back == bytes, "{} bytes came back", back.len());
}

#[tokio::test]
async fn a_stream_comes_through_before_its_end() {
    let scene = Scene::start(|_, _| {
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n".to_owned()
    });
    let mut stream = UnixStream::connect(&scene.socket).await.unwrap();
    stream
        .write_all(b"GET /events HTTP/1.1\r\nHost: docker\r\n\r\n")
        .await
        .unwrap();
    let mut said = String::new();
    while !said.contains("first") {
        said.push(char::from(stream.read_u8().await.unwrap()));
    }
}

#[tokio::test]
async fn a_container_is_created_with_our_runtime_and_resolver() {
    let scene = Scene::start(|_, _| says("201 Created", &json!({ "Id": "x", "Warnings": [] })));
    let said = scene
        .create(&json!({ "Image": "bb:1", "HostConfig": { "Dns": [] } }))
        .await;
    assert!(said.starts_with("HTTP/1.1 201 Created"), "{said}");
    let (head, body) = scene.asked().remove(0);
    assert!(
        head.starts_with("POST /v1.41/containers/create?name=c1 "),
        "{head}"
    );
    let expected = json!({ "Image": "bb:1", "HostConfig": {
        "Runtime": "weft", "Dns": ["169.254.67.83"], "DnsSearch": ["weft.local"],
    } });
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), expected);
}

#[tokio::test]
async fn containers_that_are_not_ours_are_created_as_asked_whatever_the_router_does() {
    let scene = Scene::start(|_, _| says("201 Created", &json!({ "Id": "x" })));
    let host = json!({ "HostConfig": { "NetworkMode": "host" } });
    for body in [host, json!([])] {
        let said = scene.create(&body).await;
        assert!(said.starts_with("HTTP/1.1 201"), "{said}");
        assert_eq!(scene.asked().pop().unwrap().1, body.to_string());
    }
}

#[tokio::test]
async fn a_container_on_one_of_the_plugins_networks_gets_the_resolver_if_there_is_one() {
    let mut scene = Scene::start(|head, _| match head.starts_with("GET /networks/shop ") {
        true => says("200 OK", &json!({ "Driver": "weft2:latest" })),
        false => says("201 Created", &json!({ "Id": "x" })),
    });
    let asked = json!({ "HostConfig": { "NetworkMode": "shop" } });
    let named = json!({ "HostConfig": {
        "NetworkMode": "shop", "Dns": ["169.254.67.83"], "DnsSearch": ["weft.local"],
    } });
    for expected in [named, asked.clone()] {
        let said = scene.create(&asked).await;
        assert!(said.starts_with("HTTP/1.1 201"), "{said}");
        let body = scene.asked().pop().unwrap().1;
        assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), expected);
        scene.router = None;
    }
}

#[tokio::test]
async fn a_daemon_that_does_not_know_the_runtime_is_asked_again_without() {
    let scene = Scene::start(|_, body| match body.contains("\"weft\"") {
        true => says(
            "400 Bad Request",
            &json!({ "message": "Unknown runtime specified weft" }),
        ),
        false => says("201 Created", &json!({ "Id": "x", "Warnings": null })),
    });
    let said = scene.create(&json!({ "Image": "bb:1" })).await;
    assert!(said.starts_with("HTTP/1.1 201"), "{said}");
    assert!(said.contains("weft setup docker"), "{said}");
    let second: Value = serde_json::from_str(&scene.asked()[1].1).unwrap();
    assert_eq!(second["Labels"], json!({ "weft.attach": "start" }));
    assert_eq!(second["HostConfig"]["Runtime"], "");
    let said = scene
        .create(&json!({ "HostConfig": { "Runtime": "weft" } }))
        .await;
    assert!(
        said.contains("400") && said.contains("Unknown runtime"),
        "{said}"
    );
}

#[tokio::test]
async fn without_a_router_containers_for_the_network_are_refused_and_nothing_else() {
    let mut scene = Scene::start(|_, _| ok("OK"));
    drop(scene.router.take());
    let said = scene.create(&json!({ "Image": "bb:1" })).await;
    assert!(said.starts_with("HTTP/1.1 500"), "{said}");
    assert!(
        said.contains("weft launch") && said.contains("weft env --restore"),
        "{said}"
    );
    assert!(
        scene
            .call("GET /_ping HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
            .await
            .ends_with("OK")
    );
}

#[tokio::test]
async fn without_docker_the_caller_is_told() {
    let dir = TempDir::new().unwrap();
    let router = FakeRouter::start();
    let proxy = Proxy::new(Daemon::Unix(dir.path().join("none")), router.client.clone());
    let socket = dir.path().join("p.sock");
    tokio::spawn(proxy.serve(UnixListener::bind(&socket).unwrap()));
    let mut stream = UnixStream::connect(&socket).await.unwrap();
    stream
        .write_all(b"GET /_ping HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    assert!(said.starts_with("HTTP/1.1 502"), "{said}");
    assert!(said.contains("is dockerd running?"), "{said}");
}

#[test]
fn only_creating_and_starting_are_our_business() {
    let call = |method: Method, path: &str| Call::of(&method, path);
    assert_eq!(call(Method::POST, "/containers/create"), Call::Create);
    assert_eq!(call(Method::POST, "/v1.41/containers/create"), Call::Create);
    let start = Call::Start("c1".to_owned());
    assert_eq!(call(Method::POST, "/v1.41/containers/c1/start"), start);
    assert_eq!(call(Method::POST, "/containers/c1/restart"), start);
    for path in [
        "/containers/c1/exec",
        "/v1.41/exec/c1/start",
        "/vx/containers/create",
        "/containers/create/x",
        "",
    ] {
        assert_eq!(call(Method::POST, path), Call::Other, "{path}");
    }
    assert_eq!(call(Method::GET, "/containers/create"), Call::Other);
}
