//! `weft setup docker`: the runtime put into dockerd's configuration, and the resolver if so wished, or taken
//! out again.
//!
//! dockerd's file is other people's: all that is not ours stays, in it as in the copy that is kept of it,
//! and what we cannot read we do not write. A file that says already what it should is not touched.

mod resolver;

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::proxy::RUNTIME;
use crate::runtime::NAME;

pub use resolver::Resolver;

/// What is put into the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The program that is the runtime.
    pub runtime: &'a Path,
    /// Whether it is the runtime of all containers, where none is named.
    pub default: bool,
    /// Whom all containers ask for names, if it is to be weft's.
    pub resolver: Option<&'a Resolver>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Setup {
    /// It was as it should be.
    Unchanged,
    /// The file was written; this is a copy of it as it was, if there was one.
    Written(Option<PathBuf>),
    /// Nothing else was in the file, so it is gone.
    Removed,
}

/// Why dockerd's configuration is as it was.
#[derive(Debug, Error)]
pub enum SetupError {
    /// A file cannot be used.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is not in the form dockerd reads.
    #[error("{} is no JSON object ({source}): put it right first, dockerd would not start with it", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// There is something else where the runtime's link should be.
    #[error("{} is not this program: remove it, or put the weft program into another directory", .0.display())]
    Taken(PathBuf),
    /// Containers ask other servers.
    #[error("{} has `dns` servers of yours, of which Docker would ask only the first that answers: put weft's there yourself (`weft dns-args` says which), or leave --dns out", .0.display())]
    OtherServers(PathBuf),
}

/// Makes the runtime's name for this program, a link beside it.
///
/// # Errors
/// Something else has that name, or the directory cannot be written.
pub fn link(program: &Path) -> Result<PathBuf, SetupError> {
    let link = program.with_file_name(NAME);
    let own = fs::metadata(program).map_err(failed("read", program))?;
    match fs::metadata(&link) {
        Ok(found) if (found.dev(), found.ino()) == (own.dev(), own.ino()) => Ok(link),
        Ok(_) => Err(SetupError::Taken(link)),
        Err(_) => {
            // A link that leads nowhere is one that a program left which is there no more.
            let fresh = link.with_extension(format!("{}", std::process::id()));
            symlink(program.file_name().unwrap_or_default(), &fresh)
                .map_err(failed("make", &fresh))?;
            fs::rename(&fresh, &link).map_err(failed("make", &link))?;
            Ok(link)
        }
    }
}

/// Puts what is wanted into dockerd's configuration.
///
/// # Errors
/// See [`SetupError`]; the file is as it was then.
pub fn install(config: &Path, wanted: Wanted<'_>) -> Result<Setup, SetupError> {
    let file = File::open(config)?;
    let mut json = file.json.clone().unwrap_or_default();
    let entry = json!({ "path": wanted.runtime.to_string_lossy() });
    change_runtimes(&mut json, |runtimes| {
        runtimes.insert(RUNTIME.to_owned(), entry);
    });
    if wanted.default {
        json.insert(DEFAULT.to_owned(), json!(RUNTIME));
    }
    let added = |resolver| resolver::add(&mut json, resolver);
    if !wanted.resolver.is_none_or(added) {
        return Err(SetupError::OtherServers(file.path));
    }
    file.replace(json)
}

/// Takes runtime and resolver out again. A default runtime that was another before ours is not known any more, so
/// it becomes Docker's own.
///
/// # Errors
/// See [`SetupError`]; the file is as it was then.
pub fn undo(config: &Path, resolver: &Resolver) -> Result<Setup, SetupError> {
    let file = File::open(config)?;
    let Some(mut wanted) = file.json.clone() else {
        return Ok(Setup::Unchanged);
    };
    change_runtimes(&mut wanted, |runtimes| {
        runtimes.remove(RUNTIME);
    });
    if wanted
        .get(DEFAULT)
        .is_some_and(|default| default == RUNTIME)
    {
        wanted.remove(DEFAULT);
    }
    resolver::remove(&mut wanted, resolver);
    if wanted.is_empty() && file.json.as_ref().is_some_and(|json| !json.is_empty()) {
        fs::remove_file(&file.path).map_err(failed("delete", &file.path))?;
        return Ok(Setup::Removed);
    }
    file.replace(wanted)
}

/// Has the dockerd of this pid file read its configuration again; false if none runs.
///
/// # Errors
/// It is not ours to signal.
pub fn reload(pid_file: &Path) -> io::Result<bool> {
    let text = fs::read_to_string(pid_file).unwrap_or_default();
    let Ok(pid) = text.trim().parse::<i32>() else {
        return Ok(false);
    };
    // The number may be another program's by now, which a signal might end.
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if name.trim() != "dockerd" {
        return Ok(false);
    }
    kill(Pid::from_raw(pid), Signal::SIGHUP)?;
    Ok(true)
}

/// Changes the runtimes; the list goes with the last of them.
fn change_runtimes(config: &mut Map<String, Value>, change: impl FnOnce(&mut Map<String, Value>)) {
    let runtimes = config.remove(RUNTIMES);
    let mut runtimes = runtimes
        .and_then(|r| r.as_object().cloned())
        .unwrap_or_default();
    change(&mut runtimes);
    if !runtimes.is_empty() {
        config.insert(RUNTIMES.to_owned(), Value::Object(runtimes));
    }
}

/// dockerd's configuration as it is now.
struct File {
    /// Where it is in truth, if the path is a link.
    path: PathBuf,
    /// None if there is no file.
    json: Option<Map<String, Value>>,
}

impl File {
    fn open(path: &Path) -> Result<Self, SetupError> {
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let json = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(failed("read", &path)(error)),
            // dockerd takes an empty file for one without settings.
            Ok(text) if text.trim().is_empty() => Some(Map::new()),
            Ok(text) => Some(
                serde_json::from_str(&text).map_err(|source| SetupError::Parse {
                    path: path.clone(),
                    source,
                })?,
            ),
        };
        Ok(Self { path, json })
    }

    /// Writes another text, whole or not at all, with a copy of the old one beside it.
    fn replace(self, wanted: Map<String, Value>) -> Result<Setup, SetupError> {
        if self.json.as_ref() == Some(&wanted) {
            return Ok(Setup::Unchanged);
        }
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir).map_err(failed("make", dir))?;
        }
        let copy = beside(&self.path, ".before-weft");
        if self.json.is_some() {
            fs::copy(&self.path, &copy).map_err(failed("write", &copy))?;
        }
        let fresh = beside(&self.path, ".weft-new");
        let text = format!("{:#}\n", Value::Object(wanted));
        let write = || -> io::Result<()> {
            let mut file = fs::File::create(&fresh)?;
            if self.json.is_some() {
                file.set_permissions(fs::metadata(&self.path)?.permissions())?;
            }
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&fresh, &self.path)
        };
        write().map_err(failed("write", &self.path))?;
        Ok(Setup::Written(self.json.map(|_| copy)))
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SetupError {
    let path = path.to_owned();
    move |source| SetupError::File {
        action,
        path,
        source,
    }
}

/// dockerd's configuration unless it was told otherwise.
pub const DAEMON_JSON: &str = "/etc/docker/daemon.json";
const RUNTIMES: &str = "runtimes";
const DEFAULT: &str = "default-runtime";

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn file(text: Option<&str>) -> (TempDir, PathBuf) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("daemon.json");
        if let Some(text) = text {
            fs::write(&path, text).unwrap();
        }
        (dir, path)
    }

    fn read(path: &Path) -> Value {
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    const RUNC: &str = "/usr/local/bin/weft-runc";

    fn runtime(default: bool) -> Wanted<'static> {
        Wanted {
            runtime: Path::new(RUNC),
            default,
            resolver: None,
        }
    }

    fn ours() -> Resolver {
        Resolver {
            address: [169, 254, 67, 83].into(),
            domain: "weft.local.".to_owned(),
        }
    }

    #[test]
    fn the_runtime_is_added_and_all_else_stays() {
        let before = json!({
            "log-driver": "json-file", "runtimes": { "nvidia": { "path": "n", "runtimeArgs": [] } },
        });
        let (_dir, path) = file(Some(&before.to_string()));
        let done = install(&path, runtime(false)).unwrap();
        let Setup::Written(Some(copy)) = done else {
            panic!("{done:?}");
        };
        assert_eq!(read(&copy), before);
        let mut expected = before.clone();
        expected["runtimes"]["weft"] = json!({ "path": RUNC });
        assert_eq!(read(&path), expected);
        assert_eq!(install(&path, runtime(false)).unwrap(), Setup::Unchanged);
        assert!(matches!(undo(&path, &ours()).unwrap(), Setup::Written(_)));
        assert_eq!(read(&path), before);
        assert_eq!(undo(&path, &ours()).unwrap(), Setup::Unchanged);
    }

    #[test]
    fn a_file_of_ours_alone_comes_and_goes() {
        let (dir, _) = file(None);
        let path = dir.path().join("docker/daemon.json");
        assert_eq!(undo(&path, &ours()).unwrap(), Setup::Unchanged);
        assert_eq!(install(&path, runtime(true)).unwrap(), Setup::Written(None));
        let expected =
            json!({ "runtimes": { "weft": { "path": RUNC } }, "default-runtime": "weft" });
        assert_eq!(read(&path), expected);
        assert_eq!(undo(&path, &ours()).unwrap(), Setup::Removed);
        assert!(!path.exists());
    }

    #[test]
    fn the_resolver_is_added_unless_there_are_others() {
        let (_dir, path) = file(None);
        let resolver = ours();
        let with_resolver = Wanted {
            resolver: Some(&resolver),
            ..runtime(false)
        };
        install(&path, with_resolver).unwrap();
        assert_eq!(read(&path)["dns"], json!(["169.254.67.83"]));
        assert_eq!(undo(&path, &ours()).unwrap(), Setup::Removed);
        fs::write(&path, r#"{ "dns": ["192.0.2.1"] }"#).unwrap();
        let error = install(&path, with_resolver).unwrap_err();
        assert!(error.to_string().contains("leave --dns out"), "{error}");
        assert_eq!(read(&path), json!({ "dns": ["192.0.2.1"] }));
    }

    #[test]
    fn an_empty_file_is_one_without_settings() {
        let (_dir, path) = file(Some("\n"));
        assert!(matches!(
            install(&path, runtime(false)).unwrap(),
            Setup::Written(Some(_))
        ));
        assert_eq!(
            read(&path),
            json!({ "runtimes": { "weft": { "path": RUNC } } })
        );
    }

    #[test]
    fn what_cannot_be_read_is_not_written() {
        let (_dir, path) = file(Some("{ \"log-driver\": "));
        let error = install(&path, runtime(false)).unwrap_err();
        assert!(matches!(error, SetupError::Parse { .. }), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "{ \"log-driver\": ");
    }

    #[test]
    fn a_link_to_the_file_stays_a_link() {
        let (dir, path) = file(Some("{}"));
        let linked = dir.path().join("link.json");
        symlink(&path, &linked).unwrap();
        install(&linked, runtime(false)).unwrap();
        assert!(fs::symlink_metadata(&linked).unwrap().is_symlink());
        assert_eq!(read(&path)["runtimes"]["weft"]["path"], RUNC);
    }

    #[test]
    fn a_process_that_is_not_dockerd_gets_no_signal() {
        let (_dir, path) = file(Some(&std::process::id().to_string()));
        assert!(!reload(&path).unwrap());
        assert!(!reload(Path::new("/nonexistent/docker.pid")).unwrap());
    }

    #[test]
    fn the_program_gets_its_other_name_once() {
        let dir = TempDir::new().unwrap();
        let program = dir.path().join("weft");
        fs::write(&program, "").unwrap();
        let first = link(&program).unwrap();
        assert_eq!(first, dir.path().join("weft-runc"));
        assert_eq!(
            fs::canonicalize(&first).unwrap(),
            fs::canonicalize(&program).unwrap()
        );
        assert_eq!(link(&program).unwrap(), first);
        fs::remove_file(&first).unwrap();
        symlink("/nonexistent", &first).unwrap();
        assert_eq!(link(&program).unwrap(), first);
        fs::remove_file(&first).unwrap();
        fs::write(&first, "another").unwrap();
        assert!(matches!(link(&program), Err(SetupError::Taken(_))));
    }
}
