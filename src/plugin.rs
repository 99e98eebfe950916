//! `weft plugin`: the Docker network plugin's socket, in a process of its own.
//!
//! It is not the router's business: dockerd waits for this socket's owner without any limit, and for
//! seconds at its start if nobody owns it. So it lives on when the router stops, to say so, and has no
//! state that could be lost. The router starts one when it starts, and again if it dies.
//!
//! The socket belongs to whoever put it there last: a new plugin takes the path over in one step, and
//! the one before ends when it sees that. So there is no moment without a plugin, and deleting the
//! socket ends it.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use clap::Args;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};
use weft_api::Client;
use weft_cli::launch::{DEFAULT_PLUGIN_SOCKET, LogLevel};
use weft_plugin::network::{self, Plugin, Role};
use weft_plugin::watch;

use crate::launch;

/// Serve Docker's network plugin `weft`
///
/// `weft launch` does so by itself, unless told --no-plugin. Ends when its socket is deleted.
#[derive(Debug, Clone, Args)]
pub struct PluginArgs {
    /// Where dockerd looks for the plugin; the file's name is the driver's
    #[arg(long, env = "WEFT_PLUGIN_SOCKET", value_name = "PATH", default_value = DEFAULT_PLUGIN_SOCKET)]
    pub plugin_socket: PathBuf,
    /// Do not make the Docker network `weft`
    #[arg(long)]
    pub no_docker_network: bool,
    /// Serve a swarm, as a plugin that Docker itself runs: see `weft setup docker-plugin`
    #[arg(long)]
    pub swarm: bool,
    /// What is logged
    #[arg(
        long,
        env = "WEFT_LOG_LEVEL",
        value_name = "LEVEL",
        default_value = "info"
    )]
    pub log_level: LogLevel,
}

/// Serves the plugin until its socket is deleted or taken over.
///
/// # Errors
/// The socket cannot be made.
pub fn run(socket: &Path, args: &PluginArgs) -> anyhow::Result<()> {
    launch::log_to_stderr(args.log_level);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(socket, args))
}

async fn serve(socket: &Path, args: &PluginArgs) -> anyhow::Result<()> {
    let path = &args.plugin_socket;
    let (listener, number) = listen(path)
        .with_context(|| format!("cannot make the plugin's socket {}", path.display()))?;
    info!(socket = %path.display(), "Docker's network plugin is up");
    let router = Client::new(socket);
    let role = if args.swarm { Role::Swarm } else { Role::Host };
    // What is to be done for a host once is the host's own plugin's.
    if role == Role::Host {
        tokio::spawn(network::free_leftovers(router.clone()));
        tokio::spawn(network::keep_networks_known(router.clone()));
        tokio::spawn(watch::watch(router.clone()));
        if !args.no_docker_network {
            tokio::spawn(network::make_docker_network());
        }
    }
    let calls = Router::new()
        .fallback(call)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(Arc::new(Plugin::new(router, role)));
    // Docker's first process in a container gets no signal it does not wait for.
    let mut stop = signal(SignalKind::terminate())?;
    let lost = lose(path.clone(), number);
    tokio::select! {
        served = axum::serve(listener, calls).with_graceful_shutdown(lost) => {
            served?;
            info!("the plugin's socket is another's or gone: this process ends");
        }
        _ = stop.recv() => info!("told to end"),
    }
    Ok(())
}

async fn call(State(plugin): State<Arc<Plugin>>, uri: Uri, body: Bytes) -> Response {
    let answer = plugin.answer(uri.path(), &body).await;
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], answer.body).into_response()
}

/// A socket for root alone, put in the place of whatever was there; and the number of its file.
fn listen(path: &Path) -> io::Result<(UnixListener, u64)> {
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(folder)?;
    }
    // dockerd takes every *.sock for a plugin.
    let fresh = path.with_extension(format!("new-{}", std::process::id()));
    let listener = UnixListener::bind(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
    let number = fs::metadata(&fresh)?.ino();
    fs::rename(&fresh, path)?;
    Ok((listener, number))
}

/// Comes back when the socket is no longer ours.
async fn lose(path: PathBuf, number: u64) {
    let mut looks = tokio::time::interval(LOOK);
    while fs::metadata(&path).is_ok_and(|file| file.ino() == number) {
        looks.tick().await;
    }
}

/// Whether there is, or was, a Docker on this host.
pub(crate) fn docker_is_here() -> bool {
    let signs = [
        "/run/docker",
        "/var/run/docker.sock",
        "/etc/docker",
        "/var/lib/docker",
    ];
    signs.iter().any(|sign| Path::new(sign).exists())
}

/// Starts the plugin as a process that outlives us, and starts it again when it ends.
pub(crate) fn keep_running(socket: PathBuf, plugin_socket: PathBuf, level: LogLevel) {
    let watch = move || {
        let mut wait = RESTART.0;
        loop {
            let started = Instant::now();
            match spawn(&socket, &plugin_socket, level).and_then(|mut child| child.wait()) {
                Ok(status) => {
                    warn!(%status, "Docker's network plugin has ended; starting it again")
                }
                Err(error) => warn!(%error, "Docker's network plugin cannot be started"),
            }
            wait = if started.elapsed() > RESTART.1 {
                RESTART.0
            } else {
                (wait * 2).min(RESTART.1)
            };
            std::thread::sleep(wait);
        }
    };
    let thread = std::thread::Builder::new().name("weft-plugin".to_owned());
    if let Err(error) = thread.spawn(watch) {
        warn!(%error, "Docker's network plugin is not started");
    }
}

fn spawn(socket: &Path, plugin_socket: &Path, level: LogLevel) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("weft")
        .arg("--socket")
        .arg(socket)
        .arg("plugin")
        .arg("--plugin-socket")
        .arg(plugin_socket)
        .arg("--log-level")
        .arg(level.as_str());
    for secret in launch::SECRETS {
        command.env_remove(secret);
    }
    // A group of its own: a Ctrl-C meant for the router does not end it.
    command.stdin(Stdio::null()).process_group(0).spawn()
}

/// What dockerd calls the protocol.
const CONTENT_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";
/// The longest request, in bytes; real ones are a few hundred.
const MAX_BODY: usize = 1 << 20;
/// How often the socket is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// The shortest and the longest wait before a plugin that ended is started again.
const RESTART: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
