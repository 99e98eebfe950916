//! `weft setup docker-plugin`: this program as a plugin that Docker itself runs. A swarm takes no other.
//!
//! Docker makes one of an archive: a `config.json`, and a root for its process. In that root are the
//! program that runs here and the libraries it is linked with, and nothing else; it has the host's
//! network, the right to make interfaces there, and the router's socket, by a mount.
//!
//! The mount is of all of `/run`, for reading, because Docker does not start a plugin whose mount is not
//! there, and the router's own directory comes only with the router.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use serde_json::{Value, json};
use thiserror::Error;

use crate::archive::{Archive, TooLongError};
use crate::docker::{Docker, DockerError};

/// How the plugin is called unless somebody chose a name.
pub const NAME: &str = "weft2";

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Managed {
    /// Docker runs it now.
    Made,
    /// Docker had it, and ran it.
    Unchanged,
    /// Docker had it, and runs it now.
    Enabled,
    /// Docker had it no more.
    Removed,
    /// Docker did not have it.
    Absent,
}

/// Why Docker does not run the plugin.
#[derive(Debug, Error)]
pub enum ManagedError {
    /// Docker does not do it.
    #[error("{0}")]
    Docker(#[from] DockerError),
    /// A file of the program cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file does not fit into the archive.
    #[error("{0}")]
    TooLong(#[from] TooLongError),
}

/// Makes the plugin of this program, for a router with this socket, and has Docker run it. One of that
/// name that is there stays as it is, whatever made it.
///
/// # Errors
/// See [`ManagedError`].
pub async fn install(name: &str, router: &Path) -> Result<Managed, ManagedError> {
    let docker = Docker::open().await?;
    match docker.plugin_is_enabled(name).await? {
        Some(true) => return Ok(Managed::Unchanged),
        Some(false) => {
            docker.enable_plugin(name).await?;
            return Ok(Managed::Enabled);
        }
        None => {}
    }
    docker.create_plugin(name, archive(router)?).await?;
    docker.enable_plugin(name).await?;
    Ok(Managed::Made)
}

/// Has Docker forget it.
///
/// # Errors
/// Docker does not do it: networks use the plugin.
pub async fn undo(name: &str) -> Result<Managed, ManagedError> {
    let docker = Docker::open().await?;
    let Some(enabled) = docker.plugin_is_enabled(name).await? else {
        return Ok(Managed::Absent);
    };
    if enabled {
        docker.disable_plugin(name).await?;
    }
    docker.remove_plugin(name).await?;
    Ok(Managed::Removed)
}

/// What Docker makes the plugin of.
fn archive(router: &Path) -> Result<Vec<u8>, ManagedError> {
    let maps = read(Path::new("/proc/self/maps"))?;
    let libraries = libraries(&String::from_utf8_lossy(&maps), &own_path()?);
    let mut archive = Archive::new();
    let config = config(router, loader(&libraries).as_deref());
    archive.file("config.json", 0o644, config.to_string().as_bytes())?;
    for folder in ["rootfs", "rootfs/lib"] {
        archive.folder(folder)?;
    }
    archive.file("rootfs/weft", 0o755, &read(Path::new(OWN))?)?;
    for library in &libraries {
        let name = library.file_name().unwrap_or_default().to_string_lossy();
        archive.file(&format!("rootfs/lib/{name}"), 0o755, &read(library)?)?;
    }
    Ok(archive.end())
}

fn own_path() -> Result<PathBuf, ManagedError> {
    fs::read_link(OWN).map_err(|source| ManagedError::Read {
        path: OWN.into(),
        source,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, ManagedError> {
    fs::read(path).map_err(|source| ManagedError::Read {
        path: path.to_owned(),
        source,
    })
}

/// The files whose code is in a process's memory beside its program: none if it is linked statically.
fn libraries(maps: &str, program: &Path) -> BTreeSet<PathBuf> {
    let code = |line: &str| {
        let mut fields = line.split_whitespace();
        let executable = fields.nth(1)?.contains('x');
        let path = PathBuf::from(fields.nth(3)?);
        (executable && path.is_absolute() && path != program).then_some(path)
    };
    maps.lines().filter_map(code).collect()
}

/// Which of the libraries starts the program and loads the others.
fn loader(libraries: &BTreeSet<PathBuf>) -> Option<String> {
    let names = libraries
        .iter()
        .filter_map(|path| path.file_name()?.to_str());
    let found = { names }.find(|name| name.starts_with("ld-"));
    found.map(|name| format!("/lib/{name}"))
}

/// What Docker is told of the plugin.
fn config(router: &Path, loader: Option<&str>) -> Value {
    let (mount, socket) = mount(router);
    let mut entrypoint = Vec::new();
    if let Some(loader) = loader {
        entrypoint.extend([loader, "--library-path", "/lib"].map(str::to_owned));
    }
    let ours = format!("/run/docker/plugins/{SOCKET}");
    let socket = socket.to_string_lossy().into_owned();
    let call = [
        "/weft",
        "--socket",
        &socket,
        "plugin",
        "--swarm",
        "--plugin-socket",
        &ours,
    ];
    entrypoint.extend(call.map(str::to_owned));
    json!({
        "description": concat!("weft ", env!("CARGO_PKG_VERSION"), ": networks of a swarm on weft"),
        "documentation": "",
        "entrypoint": entrypoint,
        "workdir": "/",
        "interface": {
            "types": ["docker.networkdriver/1.0", "docker.ipamdriver/1.0"],
            "socket": SOCKET,
        },
        "network": { "type": "host" },
        "pidhost": false,
        "ipchost": false,
        "propagatedMount": "",
        "linux": { "capabilities": ["CAP_NET_ADMIN"], "allowAllDevices": false, "devices": null },
        "env": null,
        "mounts": [{
            "name": "router",
            "description": "where the router's socket is",
            "source": mount,
            "destination": MOUNTED,
            "type": "none",
            "options": ["rbind", "ro"],
            "settable": null,
        }],
        "args": { "name": "", "description": "", "settable": null, "value": null },
    })
}

/// Which directory of the host the plugin gets, and where the router's socket is for it then.
fn mount(router: &Path) -> (PathBuf, PathBuf) {
    let rest = ["/run", "/var/run"]
        .iter()
        .find_map(|run| router.strip_prefix(run).ok());
    let rest = rest.filter(|rest| rest.components().all(|c| matches!(c, Component::Normal(_))));
    if let Some(rest) = rest {
        return ("/run".into(), Path::new(MOUNTED).join(rest));
    }
    let (folder, name) = (router.parent(), router.file_name().unwrap_or_default());
    let folder = folder.unwrap_or_else(|| Path::new("/"));
    (folder.to_owned(), Path::new(MOUNTED).join(name))
}

const OWN: &str = "/proc/self/exe";
/// What the plugin's socket is called, in a directory that it has for itself.
const SOCKET: &str = "weft.sock";
/// Where the host's directory is in the plugin.
const MOUNTED: &str = "/host";

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0c0000000-55d0c0400000 r--p 00000000 fe:00 1    /usr/local/bin/weft
55d0c0400000-55d0c0800000 r-xp 00400000 fe:00 1    /usr/local/bin/weft
55d0c1000000-55d0c1100000 rw-p 00000000 00:00 0    [heap]
7f0000000000-7f0000020000 r--p 00000000 fe:00 2    /usr/lib/x86_64-linux-gnu/libc.so.6
7f0000020000-7f0000100000 r-xp 00020000 fe:00 2    /usr/lib/x86_64-linux-gnu/libc.so.6
7f0000200000-7f0000210000 r--p 00000000 fe:00 3    /usr/share/some.data
7f0000300000-7f0000310000 r-xp 00000000 fe:00 4    /usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2
7fff00000000-7fff00002000 r-xp 00000000 00:00 0    [vdso]
";

    #[test]
    fn the_plugin_has_the_libraries_the_program_has() {
        let found = libraries(MAPS, Path::new("/usr/local/bin/weft"));
        let names: Vec<_> = found
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let folder = "/usr/lib/x86_64-linux-gnu";
        assert_eq!(
            names,
            [
                format!("{folder}/ld-linux-x86-64.so.2"),
                format!("{folder}/libc.so.6")
            ]
        );
        assert_eq!(loader(&found).unwrap(), "/lib/ld-linux-x86-64.so.2");
        let alone = MAPS.lines().take(3).collect::<Vec<_>>().join("\n");
        let found = libraries(&alone, Path::new("/usr/local/bin/weft"));
        assert_eq!((found.len(), loader(&found)), (0, None));
    }

    #[test]
    fn a_plugin_linked_statically_is_started_as_it_is() {
        let of = |loader| config(Path::new("/run/weft/weft.sock"), loader)["entrypoint"].clone();
        assert_eq!(of(None)[0], "/weft");
        assert_eq!(of(Some("/lib/ld.so"))[0], "/lib/ld.so");
        assert_eq!(of(Some("/lib/ld.so"))[3], "/weft");
    }

    #[test]
    fn the_routers_socket_is_found_through_the_mount() {
        let at = |path: &str| {
            let (mount, socket) = mount(Path::new(path));
            (mount.display().to_string(), socket.display().to_string())
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            at("/run/weft/weft.sock"),
            pair("/run", "/host/weft/weft.sock")
        );
        assert_eq!(
            at("/var/run/weft/w.sock"),
            pair("/run", "/host/weft/w.sock")
        );
        assert_eq!(at("/srv/w/w.sock"), pair("/srv/w", "/host/w.sock"));
        assert_eq!(
            at("/run/../etc/w.sock"),
            pair("/run/../etc", "/host/w.sock")
        );
    }
}
