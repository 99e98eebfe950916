//! What dockerd keeps of a container on disk: its names, and what was asked for when it was created.
//!
//! A hook runs while dockerd holds the container: asking its API would wait for ourselves, and while
//! dockerd starts it does not answer at all. But `config.v2.json` and `hostconfig.json` are written
//! before a container starts, in the directory its `resolv.conf` is mounted from. They are dockerd's
//! own affair, in this form since Docker 1.10, so nothing here is an error: what is not found is
//! not known, and the container is called by its host name then.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::bundle::Bundle;
use crate::DockerNames;
use crate::docker::{SERVICES, Told};

/// A container, as dockerd knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) names: DockerNames,
    /// Whether it is removed when it ends: `--rm`.
    pub(super) auto_remove: bool,
    /// Whether the user chose resolvers: `--dns`.
    pub(super) chose_dns: bool,
    /// Whether the user chose search domains: `--dns-search`.
    pub(super) chose_search: bool,
}

impl Record {
    /// What is known of the container of this bundle.
    pub(super) fn of(bundle: Option<&Bundle>, id: &str) -> Option<Self> {
        let mounted = bundle.and_then(|b| b.mounted_from(RESOLV_CONF));
        let dir = mounted.and_then(Path::parent).map(Path::to_owned);
        let dir = dir.filter(|dir| dir.ends_with(id));
        Self::read(
            &dir.unwrap_or_else(|| PathBuf::from(DOCKER_CONTAINERS).join(id)),
            id,
        )
    }

    fn read(dir: &Path, id: &str) -> Option<Self> {
        let config: Config = json(&dir.join("config.v2.json"))?;
        let host: HostConfig = json(&dir.join("hostconfig.json"))?;
        let ends = config.network_settings.and_then(|n| n.networks);
        let ends = ends
            .into_iter()
            .flat_map(std::collections::BTreeMap::into_values);
        let aliases = ends
            .flatten()
            .flat_map(|end| end.aliases.unwrap_or_default());
        let mut labels = config.config.labels.unwrap_or_default();
        let services = SERVICES.iter().filter_map(|label| labels.remove(*label));
        let services: Vec<_> = services.collect();
        let told = Told {
            id,
            name: &config.name,
            hostname: config.config.hostname,
            domain: config.config.domainname,
            aliases: aliases.chain(services).collect(),
        };
        Some(Self {
            names: told.names(),
            auto_remove: host.auto_remove,
            chose_dns: host.dns.is_some_and(|dns| !dns.is_empty()),
            chose_search: host.dns_search.is_some_and(|search| !search.is_empty()),
        })
    }
}

fn json<T: for<'de> Deserialize<'de>>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    name: String,
    config: Inner,
    network_settings: Option<NetworkSettings>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inner {
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    domainname: String,
    labels: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkSettings {
    networks: Option<std::collections::BTreeMap<String, Option<End>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct End {
    aliases: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HostConfig {
    #[serde(default)]
    auto_remove: bool,
    dns: Option<Vec<String>>,
    dns_search: Option<Vec<String>>,
}

/// Where a container finds its resolvers.
pub(super) const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where dockerd keeps its containers unless told otherwise.
const DOCKER_CONTAINERS: &str = "/var/lib/docker/containers";

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const ID: &str = "1f0e9c2b7a5d4e3f1f0e9c2b7a5d4e3f1f0e9c2b7a5d4e3f1f0e9c2b7a5d4e3f";

    fn read(config: &Value, host: &Value) -> Option<Record> {
        let dir = tempfile::TempDir::new().unwrap();
        let container = dir.path().join(ID);
        fs::create_dir(&container).unwrap();
        fs::write(container.join("config.v2.json"), config.to_string()).unwrap();
        fs::write(container.join("hostconfig.json"), host.to_string()).unwrap();
        let mount = json!({ "destination": RESOLV_CONF, "source": container.join("resolv.conf") });
        let bundle = json!({ "mounts": [mount] });
        fs::write(dir.path().join("config.json"), bundle.to_string()).unwrap();
        Record::of(Some(&Bundle::open(dir.path()).unwrap()), ID)
    }

    #[test]
    fn what_dockerd_wrote_is_read() {
        let config = json!({
            "ID": ID, "Name": "/app01", "State": {},
            "Config": {
                "Hostname": &ID[..12], "Domainname": "", "Labels": { SERVICES[0]: "app" },
            },
            "NetworkSettings": { "Networks": {
                "bridge": { "Aliases": null }, "shop": { "Aliases": ["a", &ID[..12]] }, "gone": null,
            } },
        });
        let host = json!({ "AutoRemove": true, "Dns": [], "DnsSearch": ["example.org"] });
        let expected = Record {
            names: DockerNames {
                name: "app01".to_owned(),
                hostname: None,
                aliases: vec!["a".to_owned(), "app".to_owned()],
            },
            auto_remove: true,
            chose_dns: false,
            chose_search: true,
        };
        assert_eq!(read(&config, &host), Some(expected));
    }

    #[test]
    fn what_is_missing_or_other_than_known_is_not_known() {
        let config = json!({ "Name": "/app01", "Config": { "Hostname": "www" } });
        let record = read(&config, &json!({ "Dns": null })).unwrap();
        assert_eq!(record.names.hostname.as_deref(), Some("www"));
        assert!(!record.auto_remove && !record.chose_dns);
        assert_eq!(read(&json!({ "Name": 7 }), &json!({})), None);
        assert_eq!(Record::of(None, "no-such-container"), None);
    }
}
