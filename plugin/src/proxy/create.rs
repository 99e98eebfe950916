//! Creating a container: the one request that is changed.
//!
//! The body is kept as the JSON value it is, and only `HostConfig.Runtime`, `Dns` and `DnsSearch` are
//! set, each only where the caller said nothing. dockerd reads keys in any case (Go's JSON does), so
//! they are looked for in any case here too. A body we do not understand is dockerd's to refuse.

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Map, Value, json};
use weft_api::types::Network;

use super::{Body, Proxy, ProxyError, RUNTIME, full};
use crate::runtime::bundle::{REFUSED, wanted_by};
use crate::runtime::resolv_conf::search_domains;

impl Proxy {
    pub(super) async fn create(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ProxyError> {
        let (parts, body) = request.into_parts();
        let body = Limited::new(body, MAX_BODY).collect().await;
        let body = body.map_err(|_| ProxyError::TooLong)?.to_bytes();
        let Some(mut container) = Container::parse(&body) else {
            return self.pass(with_body(&parts, body.to_vec())).await;
        };
        match self.share(&container).await? {
            Share::Nothing => return self.pass(with_body(&parts, body.to_vec())).await,
            Share::Names => {
                self.name(&mut container).await;
                return self.pass(with_body(&parts, container.emit())).await;
            }
            Share::All => {}
        }
        let network = self.router.network().await.map_err(ProxyError::Router)?;
        self.set_resolver(&mut container, &network);
        let asked_for_it = !container.set_runtime();
        let answer = self.pass(with_body(&parts, container.emit())).await?;
        if asked_for_it || answer.status() != StatusCode::BAD_REQUEST {
            return Ok(answer);
        }
        self.without_runtime(&parts, container, answer).await
    }

    /// What is ours to do for a container.
    async fn share(&self, container: &Container) -> Result<Share, ProxyError> {
        let network = match container.wish() {
            Wish::No => return Ok(Share::Nothing),
            Wish::Yes => return Ok(Share::All),
            Wish::UnlessOnPlugin(network) => network,
        };
        // A name may hold what a path may not.
        let Some(segment) = as_segment(network) else {
            return Ok(Share::All);
        };
        let path = format!("/networks/{segment}");
        let (status, found) = self.daemon.ask(Method::GET, &path).await?;
        let driver = found["Driver"].as_str().unwrap_or_default();
        Ok(if status.is_success() && driver.starts_with(PLUGIN) {
            Share::Names
        } else {
            Share::All
        })
    }

    /// Has Docker's own resolver, which the container asks, ask weft's. A container that Docker puts on the
    /// network works without it too, so it is made without it if there is no router.
    async fn name(&self, container: &mut Container) {
        match self.router.network().await {
            Ok(network) => self.set_resolver(container, &network),
            Err(error) => tracing::info!(%error, "a container will not find names of other hosts"),
        }
    }

    fn set_resolver(&self, container: &mut Container, network: &Network) {
        let host = std::fs::read_to_string(&self.resolv_conf).unwrap_or_default();
        container.set_resolver(network, &search_domains(&host));
    }

    /// A daemon that does not know our runtime: the container is created as it was asked for, marked to
    /// be attached when it is started, and the caller is told.
    async fn without_runtime(
        &self,
        parts: &Parts,
        mut container: Container,
        answer: Response<Body>,
    ) -> Result<Response<Body>, ProxyError> {
        let (head, body) = answer.into_parts();
        let said = body.collect().await.map_err(ProxyError::Broken)?.to_bytes();
        if !is_unknown_runtime(&said) {
            return Ok(Response::from_parts(head, full(said)));
        }
        container.mark();
        let answer = self.pass(with_body(parts, container.emit())).await?;
        if !answer.status().is_success() {
            return Ok(answer);
        }
        let (mut head, body) = answer.into_parts();
        let said = body.collect().await.map_err(ProxyError::Broken)?.to_bytes();
        let mut created: Map<String, Value> =
            serde_json::from_slice(&said).map_err(ProxyError::Answer)?;
        let warnings = created.entry("Warnings").or_insert(Value::Null);
        let mut list = warnings.as_array().cloned().unwrap_or_default();
        list.push(json!(NO_RUNTIME));
        *warnings = Value::Array(list);
        let text = Value::Object(created).to_string();
        head.headers.remove(TRANSFER_ENCODING);
        head.headers
            .insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
        Ok(Response::from_parts(head, full(text)))
    }
}

/// The request again, with another body.
fn with_body(parts: &Parts, body: Vec<u8>) -> Request<Body> {
    let mut request = Request::new(full(Vec::new()));
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = parts.uri.clone();
    *request.version_mut() = parts.version;
    *request.headers_mut() = parts.headers.clone();
    let headers = request.headers_mut();
    headers.remove(TRANSFER_ENCODING);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    request.map(|_| full(body))
}

/// Docker says this in one of two ways, before and since version 23.
fn is_unknown_runtime(said: &[u8]) -> bool {
    let said = String::from_utf8_lossy(said);
    said.contains("nknown runtime") || said.contains("unknown or invalid runtime")
}

fn as_segment(name: &str) -> Option<&str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    (!name.is_empty() && name.bytes().all(plain)).then_some(name)
}

/// The body of a request to create a container.
#[derive(Debug, Clone)]
struct Container(Map<String, Value>);

/// What of a container's creation is ours.
#[derive(Debug, PartialEq, Eq)]
enum Share {
    Nothing,
    /// The resolver: Docker puts it on the network, by weft's plugin.
    Names,
    /// The runtime, and the resolver.
    All,
}

/// Whether a container is to be on the network.
#[derive(Debug, PartialEq, Eq)]
enum Wish<'a> {
    Yes,
    No,
    /// Yes, if this network of Docker's is not our plugin's, which attaches by itself.
    UnlessOnPlugin(&'a str),
}

impl Container {
    fn parse(body: &[u8]) -> Option<Self> {
        serde_json::from_slice(body).ok().map(Self)
    }

    fn emit(&self) -> Vec<u8> {
        Value::Object(self.0.clone()).to_string().into_bytes()
    }

    fn wish(&self) -> Wish<'_> {
        let env = self.find("Env").and_then(Value::as_array);
        let texts = env.into_iter().flatten().filter_map(Value::as_str);
        if texts.filter_map(wanted_by).next_back() == Some(REFUSED) {
            return Wish::No;
        }
        if !matches!(self.text("Runtime"), "" | RUNTIME) {
            return Wish::No;
        }
        match self.text("NetworkMode") {
            "" | "default" | "bridge" | "none" => Wish::Yes,
            "host" => Wish::No,
            shared if shared.starts_with("container:") => Wish::No,
            network => Wish::UnlessOnPlugin(network),
        }
    }

    /// Sets the runtime; whether it was not set already.
    fn set_runtime(&mut self) -> bool {
        let fresh = self.text("Runtime").is_empty();
        self.set_in_host_config("Runtime", json!(RUNTIME));
        fresh
    }

    /// Sets the resolver and the domains that are searched, unless the caller did.
    fn set_resolver(&mut self, network: &Network, host_searches: &[&str]) {
        let (Some(resolver), Some(domain)) = (network.dns, &network.domain) else {
            return;
        };
        if !self.is_empty_list("Dns") {
            return;
        }
        self.set_in_host_config("Dns", json!([resolver.to_string()]));
        if self.is_empty_list("DnsSearch") {
            let domain = domain.trim_end_matches('.');
            let mut searches = vec![domain];
            searches.extend(host_searches.iter().filter(|d| **d != domain));
            self.set_in_host_config("DnsSearch", json!(searches));
        }
    }

    /// Takes our runtime out again, and notes that the container is to be attached when it was started.
    fn mark(&mut self) {
        self.set_in_host_config("Runtime", json!(""));
        in_map(&mut self.0, "Labels", |labels| {
            labels.insert(MARK.to_owned(), json!("start"));
        });
    }

    fn is_empty_list(&self, key: &str) -> bool {
        let list = self.in_host_config(key).and_then(Value::as_array);
        list.is_none_or(Vec::is_empty)
    }

    /// A text in `HostConfig`; empty if there is none.
    fn text(&self, key: &str) -> &str {
        self.in_host_config(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    fn in_host_config(&self, key: &str) -> Option<&Value> {
        find(self.find("HostConfig")?.as_object()?, key)
    }

    fn find(&self, key: &str) -> Option<&Value> {
        find(&self.0, key)
    }

    fn set_in_host_config(&mut self, key: &str, value: Value) {
        in_map(&mut self.0, "HostConfig", |config| {
            let key = written(config, key)
                .cloned()
                .unwrap_or_else(|| key.to_owned());
            config.insert(key, value);
        });
    }
}

/// The key as it is written there; the last one counts, as for Go.
fn written<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a String> {
    map.keys().rfind(|k| k.eq_ignore_ascii_case(key))
}

fn find<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    map.get(written(map, key)?)
}

/// Changes the map under a key, which is made if there is none.
fn in_map(outer: &mut Map<String, Value>, key: &str, change: impl FnOnce(&mut Map<String, Value>)) {
    let key = written(outer, key)
        .cloned()
        .unwrap_or_else(|| key.to_owned());
    let inner = outer.remove(&key);
    let mut inner = inner
        .and_then(|v| v.as_object().cloned())
        .unwrap_or_default();
    change(&mut inner);
    outer.insert(key, Value::Object(inner));
}

/// The longest body that is looked into, in bytes: a hundred times what compose sends.
pub(super) const MAX_BODY: usize = 16 << 20;
/// What the drivers of our plugins are called, with tags and suffixes behind.
const PLUGIN: &str = "weft";
/// The label of a container that is attached when it was started.
pub(super) const MARK: &str = "weft.attach";
/// What a caller is told whose daemon does not know the runtime.
const NO_RUNTIME: &str = "weft: dockerd does not know the runtime \"weft\", so this container is attached a moment after its first process started; `weft setup docker`, once on this host, makes it before";

#[cfg(test)]
mod tests {
    use super::*;

    fn container(body: &Value) -> Container {
        Container::parse(body.to_string().as_bytes()).unwrap()
    }

    fn network() -> Network {
        Network {
            key: weft_wire::NetworkKey::Default,
            number: 0,
            bridge: "weft".to_owned(),
            mtu: 1376,
            fast: false,
            dns: Some([169, 254, 67, 83].into()),
            domain: Some("weft.local.".to_owned()),
            default_subnet: None,
            default_subnet6: None,
            pool: None,
        }
    }

    /// What the docker command sends, cut short.
    fn body() -> Value {
        json!({
            "Hostname": "", "Env": null, "Cmd": ["sleep", "100"], "Image": "bb:1", "Entrypoint": null,
            "Labels": {}, "Unknown": [1.5, { "a": null }],
            "HostConfig": {
                "Binds": null, "NetworkMode": "default", "Dns": [], "DnsSearch": [], "Runtime": "",
                "MemorySwappiness": -1,
            },
            "NetworkingConfig": { "EndpointsConfig": {} },
        })
    }

    fn with(key: &str, value: Value) -> Container {
        let mut body = body();
        body["HostConfig"][key] = value;
        container(&body)
    }

    #[test]
    fn runtime_and_resolver_are_set_and_all_else_stays() {
        let mut changed = container(&body());
        assert!(changed.set_runtime());
        changed.set_resolver(&network(), &["corp.example", "weft.local"]);
        let mut expected = body();
        expected["HostConfig"]["Runtime"] = json!("weft");
        expected["HostConfig"]["Dns"] = json!(["169.254.67.83"]);
        expected["HostConfig"]["DnsSearch"] = json!(["weft.local", "corp.example"]);
        let emitted: Value = serde_json::from_slice(&changed.emit()).unwrap();
        assert_eq!(emitted, expected);
    }

    #[test]
    fn a_body_without_anything_gets_what_it_needs() {
        let mut bare = container(&json!({ "Image": "bb:1", "HostConfig": null }));
        assert_eq!(bare.wish(), Wish::Yes);
        bare.set_runtime();
        assert_eq!(
            Value::Object(bare.0),
            json!({ "Image": "bb:1", "HostConfig": { "Runtime": "weft" } })
        );
        assert!(Container::parse(b"[1]").is_none());
        assert!(Container::parse(b"{").is_none());
    }

    #[test]
    fn keys_are_found_in_any_case_as_dockerd_finds_them() {
        let lower = json!({ "env": ["WEFT_CIDR=none"], "hostconfig": { "networkmode": "host" } });
        let mut lower = container(&lower);
        assert_eq!(lower.wish(), Wish::No);
        assert_eq!(lower.text("NetworkMode"), "host");
        lower.set_runtime();
        let expected = json!({ "networkmode": "host", "Runtime": "weft" });
        assert_eq!(lower.0["hostconfig"], expected);
        assert_eq!(lower.0.len(), 2);
    }

    #[test]
    fn what_the_user_chose_is_kept() {
        let mut chosen = with("Dns", json!(["192.0.2.1"]));
        chosen.set_resolver(&network(), &[]);
        assert_eq!(
            chosen.0,
            *body_with("Dns", json!(["192.0.2.1"])).as_object().unwrap()
        );
        let mut searched = with("DnsSearch", json!(["a.example"]));
        searched.set_resolver(&network(), &[]);
        assert_eq!(
            searched.in_host_config("DnsSearch"),
            Some(&json!(["a.example"]))
        );
        assert!(!with("Runtime", json!("weft")).set_runtime());
    }

    fn body_with(key: &str, value: Value) -> Value {
        Value::Object(with(key, value).0)
    }

    #[test]
    fn containers_without_a_network_of_their_own_are_left_alone() {
        for mode in ["host", "container:web"] {
            assert_eq!(with("NetworkMode", json!(mode)).wish(), Wish::No, "{mode}");
        }
        for mode in ["", "default", "bridge", "none"] {
            assert_eq!(with("NetworkMode", json!(mode)).wish(), Wish::Yes, "{mode}");
        }
        let own = with("NetworkMode", json!("shop"));
        assert_eq!(own.wish(), Wish::UnlessOnPlugin("shop"));
        assert_eq!(with("Runtime", json!("nvidia")).wish(), Wish::No);
        let mut refused = body();
        refused["Env"] = json!(["A=1", "WEFT_CIDR=none"]);
        assert_eq!(container(&refused).wish(), Wish::No);
    }

    #[test]
    fn a_daemon_without_the_runtime_gets_a_label_instead() {
        let mut marked = container(&body());
        marked.set_runtime();
        marked.mark();
        let mut expected = body();
        expected["Labels"] = json!({ MARK: "start" });
        assert_eq!(Value::Object(marked.0), expected);
        assert!(is_unknown_runtime(
            br#"{"message":"Unknown runtime specified weft"}"#
        ));
        assert!(is_unknown_runtime(
            br#"{"message":"unknown or invalid runtime name: weft"}"#
        ));
        assert!(!is_unknown_runtime(
            br#"{"message":"invalid reference format"}"#
        ));
    }
}
