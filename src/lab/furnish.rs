//! The directories a place has for itself: `/etc` (names), `/run` (sockets) and `/var/lib` (state).
//!
//! They are directories in memory. What the system has in `/etc` and `/var/lib` stays reachable
//! through links, file by file, so programs find their configuration; what is written there is
//! written into memory, so nothing of a lab reaches the system's disk. This works whatever the
//! system's own files are (a `resolv.conf` that is a link into `/run`, none at all) and without
//! being root.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use weft_net::sandbox::{self, Held};

/// Where the weft program is, for commands that run in a lab.
pub(crate) const BIN: &str = "/run/lab/bin";

/// Who a place is and whom it knows by name.
#[derive(Debug)]
pub(crate) struct Names<'a> {
    /// Its own name.
    pub(crate) own: &'a str,
    /// Others, with their addresses.
    pub(crate) hosts: &'a [(Ipv4Addr, String)],
    /// Who is asked for all other names.
    pub(crate) resolver: Option<Resolver>,
}

/// A name server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Resolver {
    address: Ipv4Addr,
    domain: &'static str,
}

impl Resolver {
    /// weft's own, where it listens for containers.
    pub(crate) const WEFT: Self = Self {
        address: Ipv4Addr::new(169, 254, 67, 83),
        domain: super::DOMAIN,
    };
}

/// Furnishes a host.
pub(crate) fn host(names: &Names<'_>) -> Result<()> {
    let program = std::env::current_exe().context("cannot tell where the weft program is")?;
    // Held before anything is mounted over the way to them.
    let program = hold(&program)?;
    let etc = hold(Path::new("/etc"))?;
    let state = hold(Path::new("/var/lib"))?;
    mount_empty("/run")?;
    make_dir("/run/lab/etc")?;
    make_dir("/run/lab/var-lib")?;
    make_dir(BIN)?;
    let path = Path::new(BIN).join("weft");
    fs::write(&path, "").with_context(|| format!("cannot make {}", path.display()))?;
    program.bind_mount(&path)?;
    etc.bind_mount(Path::new("/run/lab/etc"))?;
    state.bind_mount(Path::new("/run/lab/var-lib"))?;
    shadow("/etc", "/run/lab/etc", &files(names))?;
    shadow("/var/lib", "/run/lab/var-lib", &[("weft", None)])
}

/// Furnishes a container, within a host that is.
pub(crate) fn container(names: &Names<'_>) -> Result<()> {
    let lab = hold(Path::new("/run/lab"))?;
    mount_empty("/run")?;
    make_dir("/run/lab")?;
    lab.bind_mount(Path::new("/run/lab"))?;
    shadow("/etc", "/run/lab/etc", &files(names))?;
    shadow("/var/lib", "/run/lab/var-lib", &[("weft", None)])
}

fn hold(path: &Path) -> Result<Held> {
    Held::open(path).with_context(|| format!("cannot open {}", path.display()))
}

fn mount_empty(path: &str) -> Result<()> {
    Ok(sandbox::mount_tmpfs(Path::new(path))?)
}

fn make_dir(path: &str) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make {path}"))
}

/// Replaces a directory by one in memory: our own entries (a file's text, or none for an empty
/// directory), and links to everything else at `original`.
fn shadow(directory: &str, original: &str, own: &[(&str, Option<String>)]) -> Result<()> {
    let others = others(Path::new(directory), Path::new(original), own)
        .with_context(|| format!("cannot read {directory}"))?;
    mount_empty(directory)?;
    let directory = Path::new(directory);
    for (name, target) in others {
        let path = directory.join(name);
        symlink(target, &path).with_context(|| format!("cannot make {}", path.display()))?;
    }
    for (name, text) in own {
        let path = directory.join(name);
        let made = text
            .as_ref()
            .map_or_else(|| fs::create_dir(&path), |text| fs::write(&path, text));
        made.with_context(|| format!("cannot make {}", path.display()))?;
    }
    Ok(())
}

/// What a directory holds besides our own entries, each with what a link in its place points to. A
/// link is taken as it is, because a relative one means something only where it stands.
fn others(
    directory: &Path,
    original: &Path,
    own: &[(&str, Option<String>)],
) -> io::Result<Vec<(OsString, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if own.iter().any(|(ours, _)| name == *ours) {
            continue;
        }
        let is_link = entry.file_type()?.is_symlink();
        let target = if is_link {
            fs::read_link(entry.path())?
        } else {
            original.join(&name)
        };
        found.push((name, target));
    }
    Ok(found)
}

fn files(names: &Names<'_>) -> [(&'static str, Option<String>); 4] {
    [
        ("hostname", Some(format!("{}\n", names.own))),
        ("hosts", Some(hosts_file(names))),
        ("resolv.conf", Some(resolver_file(names.resolver))),
        // Whatever else the system asks for names (mDNS takes .local for itself) is not of the lab.
        (
            "nsswitch.conf",
            Some("passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n".to_owned()),
        ),
    ]
}

fn hosts_file(names: &Names<'_>) -> String {
    let mut text = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n".to_owned();
    for (address, name) in names.hosts {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{address} {name}");
    }
    text
}

fn resolver_file(resolver: Option<Resolver>) -> String {
    resolver.map_or_else(
        || "# no name server: hosts of a lab know each other by /etc/hosts\n".to_owned(),
        |Resolver { address, domain }| {
            format!("nameserver {address}\nsearch {domain}\noptions timeout:1 attempts:3\n")
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_know_each_other_by_name() {
        let hosts = [(Ipv4Addr::new(198, 18, 0, 1), "host1".to_owned())];
        let names = Names {
            own: "host1",
            hosts: &hosts,
            resolver: None,
        };
        assert!(hosts_file(&names).ends_with("\n198.18.0.1 host1\n"));
        assert!(!resolver_file(None).contains("nameserver"));
    }

    #[test]
    fn containers_ask_weft_and_may_leave_the_domain_out() {
        let text = resolver_file(Some(Resolver::WEFT));
        assert!(
            text.contains("nameserver 169.254.67.83\n") && text.contains("search weft.local\n")
        );
    }

    #[test]
    fn a_shadow_links_to_files_and_keeps_links() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "x").unwrap();
        fs::write(folder.path().join("hosts"), "x").unwrap();
        symlink("../elsewhere", folder.path().join("link")).unwrap();
        let mut found = others(folder.path(), Path::new("/kept"), &[("hosts", None)]).unwrap();
        found.sort();
        let expected = [("file", "/kept/file"), ("link", "../elsewhere")];
        assert_eq!(
            found,
            expected.map(|(name, target)| (OsString::from(name), PathBuf::from(target)))
        );
    }
}
