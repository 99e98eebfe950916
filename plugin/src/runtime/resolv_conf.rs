//! A container's `resolv.conf`: our resolver put in for those that Docker copied from the host.
//!
//! Only the text is made here. Docker's embedded resolver (127.0.0.11) stays: a container on one of
//! Docker's own networks would lose the names of its neighbours there.

use std::net::Ipv4Addr;

/// The text with our resolver as the only one and our domain searched first; none if it is to stay as
/// it is. Search domains that the user chose stay alone.
pub(super) fn with_resolver(
    text: &str,
    resolver: Ipv4Addr,
    domain: &str,
    chose_search: bool,
) -> Option<String> {
    let nameservers = || text.lines().filter_map(|line| value(line, "nameserver"));
    if nameservers().any(|server| server == EMBEDDED) {
        return None;
    }
    let domain = domain.trim_end_matches('.');
    let searched = search_domains(text);
    let others = searched
        .iter()
        .copied()
        .filter(|d| d.trim_end_matches('.') != domain && *d != ".");
    let search: Vec<&str> = if chose_search {
        searched.clone()
    } else {
        [domain].into_iter().chain(others).collect()
    };
    let mut fresh = String::new();
    if !search.is_empty() {
        fresh.push_str(&format!("search {}\n", search.join(" ")));
    }
    fresh.push_str(&format!("nameserver {resolver}\n"));
    for line in text.lines().filter(|line| value(line, "options").is_some()) {
        fresh.push_str(line);
        fresh.push('\n');
    }
    (fresh != text).then_some(fresh)
}

/// The domains a text says to search; of several such lines the last counts (resolv.conf(5)).
pub(crate) fn search_domains(text: &str) -> Vec<&str> {
    let value = |line| value(line, "search").or_else(|| value(line, "domain"));
    let last = text.lines().filter_map(value).next_back();
    last.unwrap_or_default().split_whitespace().collect()
}

fn value<'a>(line: &'a str, keyword: &str) -> Option<&'a str> {
    let rest = line.trim_start().strip_prefix(keyword)?;
    rest.starts_with([' ', '\t']).then(|| rest.trim())
}

/// Docker's own resolver, in containers on networks that a user made.
const EMBEDDED: &str = "127.0.0.11";

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Ipv4Addr = Ipv4Addr::new(169, 254, 67, 83);

    fn with(text: &str) -> Option<String> {
        with_resolver(text, OURS, "weft.local.", false)
    }

    #[test]
    fn our_resolver_replaces_those_of_the_host() {
        let host = "# by dockerd\nnameserver 192.0.2.1\nnameserver 192.0.2.2\nsearch a.example b.example\noptions ndots:0\n";
        let ours =
            "search weft.local a.example b.example\nnameserver 169.254.67.83\noptions ndots:0\n";
        assert_eq!(with(host).as_deref(), Some(ours));
        assert_eq!(with(ours), None);
        assert_eq!(
            with("").as_deref(),
            Some("search weft.local\nnameserver 169.254.67.83\n")
        );
    }

    #[test]
    fn dockers_own_resolver_stays() {
        assert_eq!(
            with("search weft.local\nnameserver 127.0.0.11\noptions ndots:0\n"),
            None
        );
    }

    #[test]
    fn search_domains_the_user_chose_stay_alone() {
        let chosen = with_resolver(
            "search a.example\nnameserver 192.0.2.1\n",
            OURS,
            "weft.local.",
            true,
        );
        assert_eq!(
            chosen.as_deref(),
            Some("search a.example\nnameserver 169.254.67.83\n")
        );
    }
}
