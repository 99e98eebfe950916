//! What survives a restart of the router: one JSON file in the state directory.
//!
//! One file, so that the ring, the allocations and everything else change in one transaction; text,
//! so that it can be read at 3 a.m. Every write goes to a new file beside it, is flushed to the disk
//! and then renamed over the old one, so a crash leaves either the old or the new state, whole. A
//! file that does not parse is never overwritten: the router refuses to start and says what to do,
//! because starting empty would hand out addresses a second time.
//!
//! Invariant: [`Store::save`] returns only when the new state is on the disk.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use weft_ipam::Saved;
use weft_router::Identity;
use weft_wire::{Malformed, NetworkKey};
use zeroize::Zeroizing;

use crate::machine::Machine;

/// Version of the file's format; a file of another version is not read.
const FORMAT: u32 = 1;
const FILE: &str = "state.json";
const LOCK: &str = "lock";
/// How the file of a state begins that was another machine's.
const SET_ASIDE: &str = "cloned-";

/// All that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    /// Version of this format.
    pub format: u32,
    /// The machine it was written on; none if this weft is the first to ask.
    #[serde(default)]
    pub machine: Option<Machine>,
    /// The secret half of the static key, hex.
    pub secret: String,
    /// Counts the starts, and is never below the Unix time of the last one in seconds.
    pub generation: u64,
    /// The last run ended by `stop`, not by a crash.
    pub stopped_cleanly: bool,
    /// Addresses we were told to connect to.
    pub targets: Vec<String>,
    /// Ring and allocations of each address pool, by its CIDR.
    pub pools: BTreeMap<String, PoolState>,
    /// Names of our own containers.
    pub names: Vec<NameState>,
    /// Addresses the host itself has in the network.
    pub exposed: Vec<ExposedState>,
    /// Interfaces of our own containers.
    #[serde(default)]
    pub bindings: Vec<BindingState>,
    /// The networks of this host, by key.
    #[serde(default)]
    pub networks: BTreeMap<String, NetworkState>,
}

/// What a network is on this host, and who uses it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetworkState {
    /// Its links; none for the default network, whose names are arguments.
    pub links: Option<Links>,
    /// Containers, and networks of Docker's; what each said when it joined.
    pub users: BTreeMap<String, UserState>,
}

/// The links of one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Links {
    /// The bridge containers are put on.
    pub bridge: String,
    /// The router's port on it.
    pub tap: String,
}

/// What the user of a network said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UserState {
    /// Whether multicast is sent into the network.
    pub multicast: bool,
}

/// Ring and allocations of one pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PoolState {
    /// The part that the `ipam` crate writes and reads itself, hex; see its `Saved`.
    pub saved: String,
}

/// One name of one of our containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NameState {
    /// Fully qualified, with the trailing dot.
    pub name: String,
    /// The container it belongs to.
    pub container: String,
    /// Its address.
    pub addr: IpAddr,
}

/// One interface of one of our containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BindingState {
    /// The container it belongs to.
    pub container: String,
    /// The network it is on, by key.
    #[serde(default = "default_network")]
    pub network: String,
    /// Its MAC.
    pub mac: String,
    /// The host's end of it.
    pub port: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

fn default_network() -> String {
    NetworkKey::Default.to_string()
}

/// One address of the host in the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExposedState {
    /// Address and prefix length.
    pub cidr: String,
    /// Whether traffic between it and the outside is masqueraded.
    pub masquerade: bool,
}

impl State {
    /// The state of a peer that never ran before.
    pub(crate) fn new(identity: &Identity) -> Self {
        Self {
            format: FORMAT,
            machine: None,
            secret: hex(identity.secret().as_slice()),
            generation: 0,
            stopped_cleanly: true,
            targets: Vec::new(),
            pools: BTreeMap::new(),
            names: Vec::new(),
            exposed: Vec::new(),
            bindings: Vec::new(),
            networks: BTreeMap::new(),
        }
    }

    /// The static key pair; `None` if what is kept is none.
    pub(crate) fn identity(&self) -> Option<Identity> {
        let secret = Zeroizing::new(unhex(&self.secret)?);
        let secret = <[u8; 32]>::try_from(secret.as_slice()).ok()?;
        Identity::from_secret(Zeroizing::new(secret)).ok()
    }
}

impl PoolState {
    /// In the form it is kept.
    pub(crate) fn new(saved: &Saved) -> Self {
        Self {
            saved: hex(&saved.emit()),
        }
    }

    /// As the allocator takes it.
    ///
    /// # Errors
    /// What is kept is damaged, or of a later version.
    pub(crate) fn saved(&self) -> Result<Saved, RingError> {
        let bytes = unhex(&self.saved).unwrap_or_default();
        match Saved::unknown_format(&bytes) {
            Some(found) => Err(RingError::Format { found }),
            None => Ok(Saved::parse(&bytes)?),
        }
    }
}

/// Why a ring in the state file cannot be used.
#[derive(Debug, PartialEq, Eq, Error)]
pub(crate) enum RingError {
    /// It is not what we wrote.
    #[error(
        "an address ring in the state file is damaged ({0}): put back a good copy of the file, or give this peer's \
         addresses up with `weft reset --force` (then run `weft rmpeer` for its old name on another peer)"
    )]
    Damaged(#[from] Malformed),
    /// It was written by another version of weft.
    #[error(
        "an address ring in the state file has format {found}, which this weft does not know: use the version that wrote it"
    )]
    Format {
        /// The format found.
        found: u8,
    },
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()))
        .collect();
    let (pairs, rest) = digits.as_deref()?.as_chunks::<2>();
    rest.is_empty()
        .then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

/// Why the state cannot be had.
#[derive(Debug, Error)]
pub(crate) enum StateError {
    /// The directory or file cannot be used.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// How it failed.
        source: io::Error,
    },
    /// Another router holds the directory.
    #[error("another weft router uses the state directory {0}")]
    Locked(PathBuf),
    /// The file is not what we wrote.
    #[error(
        "the state file {path} is damaged ({reason}). It is left as it is. Put back a good copy, or give this \
         peer's addresses up with `weft reset --force` (then run `weft rmpeer` for its old name on another peer)"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file was written by another version of weft.
    #[error(
        "the state file {path} has format {found}, this weft reads format {FORMAT}: use the version that wrote it"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// The format found.
        found: u32,
    },
}

/// The state directory, held by this process alone.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    _lock: File,
}

impl Store {
    /// Makes the directory if need be and locks it.
    ///
    /// # Errors
    /// [`StateError::Locked`] if another router runs on it; [`StateError::Io`] if it cannot be used.
    pub(crate) fn open(dir: &Path) -> Result<Self, StateError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Io {
                action,
                path,
                source,
            }
        };
        fs::create_dir_all(dir).map_err(io("create", dir))?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(io("restrict", dir))?;
        let path = dir.join(LOCK);
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(io("open", &path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                dir: dir.to_owned(),
                _lock: lock,
            }),
            Err(fs::TryLockError::WouldBlock) => Err(StateError::Locked(dir.to_owned())),
            Err(fs::TryLockError::Error(source)) => Err(io("lock", &path)(source)),
        }
    }

    /// Reads the state; `None` if there is none yet.
    ///
    /// # Errors
    /// [`StateError::Damaged`] or [`StateError::Format`] if the file is there and cannot be trusted.
    pub(crate) fn load(&self) -> Result<Option<State>, StateError> {
        let path = self.dir.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                let reason = "it is not text".to_owned();
                return Err(StateError::Damaged { path, reason });
            }
            Err(source) => {
                return Err(StateError::Io {
                    action: "read",
                    path,
                    source,
                });
            }
        };
        let damaged = |e: serde_json::Error| StateError::Damaged {
            path: path.clone(),
            reason: e.to_string(),
        };
        let any: FormatOnly = serde_json::from_str(&text).map_err(damaged)?;
        if any.format != FORMAT {
            return Err(StateError::Format {
                path,
                found: any.format,
            });
        }
        serde_json::from_str(&text).map(Some).map_err(damaged)
    }

    /// Writes the state to the disk.
    ///
    /// # Errors
    /// [`StateError::Io`]; the old state is still there then.
    pub(crate) fn save(&self, state: &State) -> Result<(), StateError> {
        let path = self.dir.join(FILE);
        self.replace(&path, state).map_err(|source| StateError::Io {
            action: "write",
            path,
            source,
        })
    }

    /// Puts the state away, because it is a copy of another machine's; returns where it is kept.
    ///
    /// # Errors
    /// [`StateError::Io`]; it is where it was then.
    pub(crate) fn set_aside(&self, unix_seconds: u64) -> Result<PathBuf, StateError> {
        let to = self.dir.join(format!("{SET_ASIDE}{unix_seconds}.json"));
        let moved = fs::rename(self.dir.join(FILE), &to);
        moved.map_err(|source| StateError::Io {
            action: "set aside the state as",
            path: to.clone(),
            source,
        })?;
        Ok(to)
    }

    fn replace(&self, path: &Path, state: &State) -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(".state-")
            .permissions(fs::Permissions::from_mode(0o600))
            .tempfile_in(&self.dir)?;
        serde_json::to_writer_pretty(&mut file, state)?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        File::open(&self.dir)?.sync_all()
    }
}

#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

#[cfg(test)]
mod tests {
    use rand_core::SeedableRng;

    use super::*;

    fn sample() -> State {
        let mut rng = rand_chacha::ChaCha20Rng::seed_from_u64(1);
        let mut state = State::new(&Identity::generate(&mut rng).unwrap());
        state.targets.push("host2:6783".to_owned());
        state.names.push(NameState {
            name: "web.weft.local.".to_owned(),
            container: "c1".to_owned(),
            addr: "10.32.0.1".parse().unwrap(),
        });
        state.bindings.push(BindingState {
            network: default_network(),
            container: "c1".to_owned(),
            mac: "02:00:00:00:00:01".to_owned(),
            port: "weftpl1".to_owned(),
            addresses: vec!["10.32.0.1".parse().unwrap()],
        });
        state
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("weft")).unwrap();
        assert!(store.load().unwrap().is_none());
        store.save(&sample()).unwrap();
        assert_eq!(store.load().unwrap(), Some(sample()));
    }

    #[test]
    fn a_file_from_before_there_were_bindings_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut value = serde_json::to_value(sample()).unwrap();
        value.as_object_mut().unwrap().remove("bindings").unwrap();
        fs::write(dir.path().join(FILE), value.to_string()).unwrap();
        let loaded = store.load().unwrap().unwrap();
        assert_eq!((loaded.bindings, loaded.names), (vec![], sample().names));
    }

    #[test]
    fn the_key_is_found_again() {
        let state = sample();
        let again = state.identity().unwrap();
        assert_eq!(State::new(&again).secret, state.secret);
        let damaged = State {
            secret: "xy".to_owned(),
            ..state
        };
        assert!(damaged.identity().is_none());
    }

    #[test]
    fn a_state_set_aside_is_out_of_the_way_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.save(&sample()).unwrap();
        let kept = store.set_aside(1_800_000_000).unwrap();
        assert_eq!(kept, dir.path().join("cloned-1800000000.json"));
        assert!(store.load().unwrap().is_none());
        let text = fs::read_to_string(kept).unwrap();
        assert_eq!(serde_json::from_str::<State>(&text).unwrap(), sample());
    }

    #[test]
    fn a_state_of_before_the_machine_was_noted_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut text = serde_json::to_value(sample()).unwrap();
        text.as_object_mut().unwrap().remove("machine").unwrap();
        fs::write(dir.path().join(FILE), text.to_string()).unwrap();
        assert_eq!(store.load().unwrap(), Some(sample()));
    }

    #[test]
    fn nobody_else_reads_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.save(&sample()).unwrap();
        let mode = fs::metadata(dir.path().join(FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_second_router_on_the_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Store::open(dir.path()).unwrap();
        assert!(matches!(
            Store::open(dir.path()),
            Err(StateError::Locked(_))
        ));
    }

    #[test]
    fn a_file_cut_anywhere_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.save(&sample()).unwrap();
        let path = dir.path().join(FILE);
        let whole = fs::read(&path).unwrap();
        for len in 0..whole.len() - 2 {
            fs::write(&path, &whole[..len]).unwrap();
            assert!(
                matches!(store.load(), Err(StateError::Damaged { .. })),
                "cut at {len}"
            );
            assert_eq!(fs::read(&path).unwrap().len(), len);
        }
    }

    #[test]
    fn a_ring_of_a_later_version_or_damaged_is_refused_with_what_to_do() {
        let kept = |text: &str| PoolState {
            saved: text.to_owned(),
        };
        // The start of what the allocator writes, and a format that is not there yet.
        let later = kept("57524e47ff").saved().unwrap_err();
        assert_eq!(later, RingError::Format { found: 0xff });
        assert!(later.to_string().contains("use the version that wrote it"));
        for text in ["", "57", "57524e4702", "no hex"] {
            let damaged = kept(text).saved().unwrap_err().to_string();
            assert!(damaged.contains("put back a good copy"), "{damaged}");
        }
    }

    /// Writes states without end, and says after each that it is kept.
    fn write_for_ever(dir: &Path) {
        let store = Store::open(dir).unwrap();
        let mut state = store.load().unwrap().unwrap_or_else(sample);
        loop {
            state.generation += 1;
            let more = usize::try_from(state.generation % 50).unwrap();
            state.targets = vec!["host:6783".to_owned(); more * 100];
            store.save(&state).unwrap();
            println!("kept {}", state.generation);
            io::stdout().flush().unwrap();
        }
    }

    #[test]
    fn a_writer_killed_at_any_moment_leaves_a_whole_state_no_older_than_what_it_said() {
        use std::io::{BufRead, BufReader};
        use std::process::{Command, Stdio};
        if let Some(dir) = std::env::var_os(DIR) {
            return write_for_ever(Path::new(&dir)); // we are the writer
        }
        let dir = tempfile::tempdir().unwrap();
        let mut kept = 0;
        for round in 0..12_u32 {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", THIS, "--nocapture"])
                .env(DIR, dir.path())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            // Whatever is said before the end is read to the end, so nothing is missed.
            let mut said = 0;
            while said <= round * 3 {
                let line = lines.next().expect("the writer goes on").unwrap();
                if let Some((_, number)) = line.split_once("kept ") {
                    kept = number.parse::<u64>().unwrap();
                    said += 1;
                }
            }
            std::thread::sleep(std::time::Duration::from_micros((round * 373).into()));
            child.kill().unwrap();
            child.wait().unwrap();
            for line in lines.map_while(Result::ok) {
                if let Some((_, number)) = line.split_once("kept ") {
                    kept = number.parse::<u64>().unwrap();
                }
            }
            let state = Store::open(dir.path()).unwrap().load().unwrap().unwrap();
            assert!(state.generation >= kept, "{} < {kept}", state.generation);
            let more = usize::try_from(state.generation % 50).unwrap();
            assert_eq!(state.targets.len(), more * 100, "two states in one");
        }
    }

    const DIR: &str = "WEFT_TEST_STATE_DIR";
    const THIS: &str = "state::tests::a_writer_killed_at_any_moment_leaves_a_whole_state_no_older_than_what_it_said";

    #[test]
    fn a_file_of_another_format_is_named_so() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        fs::write(dir.path().join(FILE), r#"{"format": 9, "new": true}"#).unwrap();
        assert!(matches!(
            store.load(),
            Err(StateError::Format { found: 9, .. })
        ));
    }
}
