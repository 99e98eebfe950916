//! Docker's resolver told to ask weft's, in dockerd's configuration: `dns` and `dns-search`.
//!
//! Both are one list for all containers, and dockerd asks the first server that answers. So weft's is the
//! only one there, which passes on what is not its own; other people's list is not changed but refused.

use std::net::Ipv4Addr;

use serde_json::{Map, Value, json};

/// weft's resolver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolver {
    /// Where containers reach it.
    pub address: Ipv4Addr,
    /// The domain names are in.
    pub domain: String,
}

/// Adds the resolver; false if there is another already, and nothing was changed.
pub(super) fn add(config: &mut Map<String, Value>, resolver: &Resolver) -> bool {
    let servers = list(config, SERVERS);
    if !servers.is_empty() && servers != [resolver.address.to_string()] {
        return false;
    }
    config.insert(SERVERS.to_owned(), json!([resolver.address.to_string()]));
    let ours = domain(resolver);
    let mut searched = list(config, SEARCHED);
    searched.retain(|domain| domain != ours);
    searched.insert(0, ours.to_owned());
    config.insert(SEARCHED.to_owned(), json!(searched));
    true
}

/// Takes the resolver out, if it is there.
pub(super) fn remove(config: &mut Map<String, Value>, resolver: &Resolver) {
    if list(config, SERVERS) != [resolver.address.to_string()] {
        return;
    }
    config.remove(SERVERS);
    let mut searched = list(config, SEARCHED);
    searched.retain(|other| other != domain(resolver));
    if searched.is_empty() {
        config.remove(SEARCHED);
    } else {
        config.insert(SEARCHED.to_owned(), json!(searched));
    }
}

fn domain(resolver: &Resolver) -> &str {
    resolver.domain.trim_end_matches('.')
}

fn list(config: &Map<String, Value>, key: &str) -> Vec<String> {
    let values = config.get(key).and_then(Value::as_array);
    let texts = values.into_iter().flatten().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}

const SERVERS: &str = "dns";
const SEARCHED: &str = "dns-search";

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> Resolver {
        Resolver {
            address: [169, 254, 67, 83].into(),
            domain: "weft.local.".to_owned(),
        }
    }

    fn map(value: &Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn the_resolver_comes_and_goes_and_other_domains_stay() {
        let before = map(&json!({ "dns-search": ["corp.example"], "debug": true }));
        let mut config = before.clone();
        for _ in 0..2 {
            assert!(add(&mut config, &ours()));
            let after = json!({ "debug": true, "dns": ["169.254.67.83"],
                "dns-search": ["weft.local", "corp.example"] });
            assert_eq!(config, map(&after));
        }
        remove(&mut config, &ours());
        assert_eq!(config, before);
        let mut fresh = Map::new();
        assert!(add(&mut fresh, &ours()));
        remove(&mut fresh, &ours());
        assert!(fresh.is_empty());
    }

    #[test]
    fn somebody_elses_servers_are_left_alone() {
        let before = map(&json!({ "dns": ["192.0.2.1"], "dns-search": ["weft.local"] }));
        let mut config = before.clone();
        assert!(!add(&mut config, &ours()));
        remove(&mut config, &ours());
        assert_eq!(config, before);
    }
}
