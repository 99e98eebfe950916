//! An OCI bundle's `config.json`: what is read of it, and the hooks put in.
//!
//! It is kept as the JSON value it is, so that whatever we do not know stays in. Format: the OCI
//! runtime specification 1.0, `config.md` and `config-linux.md`.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use thiserror::Error;
use weft_wire::{NetworkKey, NetworkKeyError};

use crate::{AddressSpec, ParseAddressError};

/// A bundle's configuration.
#[derive(Debug, Clone)]
pub struct Bundle {
    path: PathBuf,
    config: Map<String, Value>,
}

/// Why a bundle is of no use.
#[derive(Debug, Error)]
pub enum BundleError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Its configuration.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is not a JSON object.
    #[error("{} is no JSON object: {source}", path.display())]
    Parse {
        /// Its configuration.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Its configuration.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl Bundle {
    /// Reads the configuration of the bundle in this directory.
    ///
    /// # Errors
    /// It cannot be read, or is not JSON.
    pub fn open(dir: &Path) -> Result<Self, BundleError> {
        let path = dir.join("config.json");
        let text = fs::read(&path).map_err(|source| BundleError::Read {
            path: path.clone(),
            source,
        })?;
        let config = serde_json::from_slice::<Map<String, Value>>(&text);
        let config = config.map_err(|source| BundleError::Parse {
            path: path.clone(),
            source,
        })?;
        Ok(Self { path, config })
    }

    /// Whether the container gets a network namespace of its own and does not refuse ours: not so with
    /// the host's network, another container's, or `WEFT_CIDR=none`.
    pub fn wants_network(&self) -> bool {
        let namespaces = self.list("linux", "namespaces");
        let network = namespaces.iter().find(|ns| ns["type"] == "network");
        let fresh = network.is_some_and(|ns| ns["path"].as_str().is_none_or(str::is_empty));
        fresh && self.weft_cidr() != Some(REFUSED)
    }

    /// What the container's environment asks for, blanks around it cut; the last one counts, as for
    /// a program.
    pub fn weft_cidr(&self) -> Option<&str> {
        let texts = self.list("process", "env").iter().filter_map(Value::as_str);
        texts.filter_map(wanted_by).next_back()
    }

    /// The network its environment asks for.
    pub fn weft_network(&self) -> Option<&str> {
        let texts = self.list("process", "env").iter().filter_map(Value::as_str);
        texts.filter_map(network_wanted_by).next_back()
    }

    /// The host name the container will have.
    pub fn hostname(&self) -> Option<&str> {
        self.config.get("hostname")?.as_str()
    }

    /// The file on the host that is mounted at a path in the container.
    pub fn mounted_from(&self, destination: &str) -> Option<&Path> {
        let mounts = self.config.get("mounts")?.as_array()?;
        let found = mounts.iter().rfind(|m| m["destination"] == destination)?;
        found["source"].as_str().map(Path::new)
    }

    /// Adds our hooks behind those that are there: one that attaches before the first process runs,
    /// one that frees when the last has ended.
    pub fn add_hooks(&mut self, program: &Path, socket: Option<&OsStr>) {
        let hook = |what: &str| {
            let mut args = vec!["weft".to_owned(), "hook".to_owned(), what.to_owned()];
            args.extend(socket.map(|socket| socket.to_string_lossy().into_owned()));
            json!({ "path": program.to_string_lossy(), "args": args, "timeout": HOOK_SECONDS })
        };
        // What is no map or no list, as `null` that Go writes for an empty one, is none.
        let hooks = self.config.remove("hooks");
        let mut hooks = hooks
            .and_then(|h| h.as_object().cloned())
            .unwrap_or_default();
        for (stage, what) in [("createRuntime", ATTACH), ("poststop", FREE)] {
            let list = hooks.remove(stage);
            let mut list = list.and_then(|l| l.as_array().cloned()).unwrap_or_default();
            list.push(hook(what));
            hooks.insert(stage.to_owned(), Value::Array(list));
        }
        self.config.insert("hooks".to_owned(), Value::Object(hooks));
    }

    fn list(&self, outer: &str, inner: &str) -> &[Value] {
        let inner = self.config.get(outer).and_then(|part| part.get(inner));
        inner.and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// Writes it back, whole or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self) -> Result<(), BundleError> {
        let failed = |source| BundleError::Write {
            path: self.path.clone(),
            source,
        };
        let fresh = self.path.with_extension("json.weft");
        let mode = fs::metadata(&self.path).map_err(failed)?.permissions();
        let text = Value::Object(self.config.clone()).to_string();
        fs::write(&fresh, text).map_err(failed)?;
        fs::set_permissions(&fresh, mode).map_err(failed)?;
        fs::rename(&fresh, &self.path).map_err(failed)
    }
}

/// What an entry of an environment, `NAME=VALUE`, asks for with `WEFT_CIDR`.
pub(crate) fn wanted_by(entry: &str) -> Option<&str> {
    let value = entry.strip_prefix("WEFT_CIDR=")?;
    Some(value.trim())
}

/// What such an entry asks for with `WEFT_NETWORK`.
pub(crate) fn network_wanted_by(entry: &str) -> Option<&str> {
    let value = entry.strip_prefix("WEFT_NETWORK=")?;
    Some(value.trim())
}

/// What the value of `WEFT_NETWORK` asks for; nothing, or none at all, is the default network.
pub(crate) fn network(wanted: Option<&str>) -> Result<NetworkKey, NetworkKeyError> {
    let wanted = wanted.filter(|text| !text.is_empty());
    wanted.map_or(Ok(NetworkKey::Default), NetworkKey::typed)
}

/// What the value of `WEFT_CIDR` asks for; nothing, or none at all, is an address of the default subnet.
pub(crate) fn addresses(wanted: Option<&str>) -> Result<Vec<AddressSpec>, ParseAddressError> {
    wanted
        .unwrap_or_default()
        .split_whitespace()
        .map(str::parse)
        .collect()
}

/// The value of `WEFT_CIDR` that keeps a container off the network.
pub(crate) const REFUSED: &str = "none";
/// The hook that attaches, as `weft hook` knows it.
pub(super) const ATTACH: &str = "attach";
/// The hook that frees.
pub(super) const FREE: &str = "free";
/// When runc kills a hook, in seconds: later than the hook itself gives up.
const HOOK_SECONDS: u64 = 60;

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(config: Value) -> Bundle {
        let path = PathBuf::from("/nonexistent/config.json");
        let config = config.as_object().unwrap().clone();
        Bundle { path, config }
    }

    fn with_network(network: Value) -> Bundle {
        bundle(json!({ "linux": { "namespaces": [{ "type": "pid" }, network] } }))
    }

    #[test]
    fn only_containers_with_a_network_of_their_own_are_attached() {
        assert!(with_network(json!({ "type": "network" })).wants_network());
        assert!(with_network(json!({ "type": "network", "path": "" })).wants_network());
        let shared = json!({ "type": "network", "path": "/proc/17/ns/net" });
        assert!(!with_network(shared).wants_network());
        assert!(!with_network(json!({ "type": "ipc" })).wants_network());
        assert!(!bundle(json!({})).wants_network());
    }

    #[test]
    fn the_environment_chooses_addresses_or_none() {
        let with = |env: Value| {
            bundle(json!({
                "process": { "env": env },
                "linux": { "namespaces": [{ "type": "network" }] },
            }))
        };
        let refused = with(json!(["A=1", "WEFT_CIDR=none"]));
        assert!(!refused.wants_network());
        let chosen = with(json!(["WEFT_CIDR=none", "WEFT_CIDR= net:10.2.0.0/16 "]));
        assert_eq!(chosen.weft_cidr(), Some("net:10.2.0.0/16"));
        assert!(chosen.wants_network());
        assert_eq!(with(json!(["XWEFT_CIDR=none", 7])).weft_cidr(), None);
        assert_eq!(with(Value::Null).weft_cidr(), None);
    }

    #[test]
    fn hooks_are_added_and_all_else_stays() {
        let dir = tempfile::TempDir::new().unwrap();
        let before = json!({
            "ociVersion": "1.0.2-dev", "unknown": { "deep": [1.5, null, "x"] },
            "hooks": { "prestart": [{ "path": "/proc/1/exe" }], "createRuntime": [{ "path": "/other" }] },
        });
        fs::write(dir.path().join("config.json"), before.to_string()).unwrap();
        let mut bundle = Bundle::open(dir.path()).unwrap();
        bundle.add_hooks(Path::new("/usr/bin/weft"), Some(OsStr::new("/s")));
        bundle.save().unwrap();
        let after = Bundle::open(dir.path()).unwrap().config;
        let hook = |what| json!({ "path": "/usr/bin/weft", "args": ["weft", "hook", what, "/s"], "timeout": HOOK_SECONDS });
        let mut expected = before;
        expected["hooks"]["createRuntime"] = json!([{ "path": "/other" }, hook("attach")]);
        expected["hooks"]["poststop"] = json!([hook("free")]);
        assert_eq!(Value::Object(after), expected);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_configuration_without_hooks_gets_them() {
        for config in [
            json!({}),
            json!({ "hooks": null }),
            json!({ "hooks": { "poststop": null } }),
        ] {
            let mut bundle = bundle(config);
            bundle.add_hooks(Path::new("/w"), None);
            let hooks = &bundle.config["hooks"];
            assert_eq!(
                hooks["createRuntime"][0]["args"],
                json!(["weft", "hook", "attach"])
            );
            assert_eq!(
                hooks["poststop"][0]["args"],
                json!(["weft", "hook", "free"])
            );
        }
    }

    #[test]
    fn the_last_mount_at_a_path_counts() {
        let bundle = bundle(json!({ "mounts": [
            { "destination": "/etc/resolv.conf", "source": "/a" },
            { "destination": "/etc/hosts", "source": "/b" },
            { "destination": "/etc/resolv.conf", "source": "/c" },
        ] }));
        assert_eq!(
            bundle.mounted_from("/etc/resolv.conf"),
            Some(Path::new("/c"))
        );
        assert_eq!(bundle.mounted_from("/etc/passwd"), None);
    }

    #[test]
    fn damaged_configurations_are_said() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("config.json");
        for text in ["", "[]", "{", "\u{fffd}"] {
            fs::write(&path, text).unwrap();
            let error = Bundle::open(dir.path()).unwrap_err();
            assert!(
                matches!(error, BundleError::Parse { .. }),
                "{text:?}: {error}"
            );
        }
    }

    #[test]
    fn what_is_not_asked_for_is_an_address_of_the_default_subnet() {
        assert_eq!(addresses(None), Ok(vec![]));
        assert_eq!(network(None), Ok(NetworkKey::Default));
        assert_eq!(network(Some("blue")), NetworkKey::named("blue"));
        assert!(network(Some("a b")).is_err());
        assert_eq!(addresses(Some(" ")), Ok(vec![]));
        assert_eq!(
            addresses(Some("net:default 10.2.0.1/16")).map(|a| a.len()),
            Ok(2)
        );
    }
}
