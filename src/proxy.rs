//! `weft proxy`: the process around [`weft_plugin::proxy`], its socket, its log and its end; and the
//! router's part, which starts it.
//!
//! It lives on when the router ends: shells that `weft env` led to it would have no Docker otherwise.
//! Only a proxy of another version of the program is replaced, when a router of this one starts.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};
use weft_api::Client;
use weft_cli::launch::{HostArgs, LogLevel};
use weft_cli::{GlobalArgs, ProxyArgs, exit};
use weft_plugin::proxy::place::{self, Place};
use weft_plugin::proxy::{Daemon, Proxy, socket_beside};

use crate::launch::{self, log_to_stderr};

/// Runs `weft proxy` until it is told to end.
///
/// # Errors
/// Its socket cannot be had, or dockerd's address is none.
pub fn run(global: &GlobalArgs, args: &ProxyArgs) -> anyhow::Result<u8> {
    log_to_stderr(LogLevel::Info);
    let daemon: Daemon = args.docker.parse()?;
    let socket = socket_beside(&global.socket);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (_place, listener) = Place::take(&socket, daemon.local_socket())?;
        let mut stop = signal(SignalKind::terminate()).context("cannot wait for a signal")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for a signal")?;
        info!(socket = %socket.display(), docker = %daemon, "Docker's API is here too");
        let proxy = Proxy::new(daemon, Client::new(&global.socket));
        tokio::select! {
            () = proxy.serve(listener) => {}
            _ = stop.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(exit::OK)
    })
}

/// Starts the proxy as a process that outlives us, as soon as there is Docker, and again when it ends.
pub(crate) fn keep_running(router: &Path, args: &HostArgs) {
    let docker = args.docker_socket.0.clone().filter(|_| !args.no_proxy);
    let Some(docker) = docker else {
        return;
    };
    let mut keeper = Keeper {
        socket: socket_beside(router),
        router: router.to_owned(),
        docker,
        child: None,
    };
    let keep = move || {
        place::end_other_program(&keeper.socket);
        loop {
            keeper.look();
            thread::sleep(INTERVAL);
        }
    };
    let thread = thread::Builder::new().name("weft-proxy".to_owned());
    if let Err(error) = thread.spawn(keep) {
        warn!(%error, "the proxy for Docker's API is not started");
    }
}

struct Keeper {
    router: PathBuf,
    socket: PathBuf,
    docker: PathBuf,
    /// The process we started last, until it is found to have ended.
    child: Option<Child>,
}

impl Keeper {
    /// Starts the proxy if it should run and does not.
    fn look(&mut self) {
        let ended = |child: &mut Child| matches!(child.try_wait(), Ok(Some(_)) | Err(_));
        if self.child.as_mut().is_some_and(ended) {
            self.child = None;
        }
        let elsewhere = std::env::var_os(DOCKER_HOST).is_some();
        let wanted = elsewhere || self.docker.exists();
        if self.child.is_some() || !wanted || place::is_taken(&self.socket) {
            return;
        }
        match self.start(elsewhere) {
            Ok(child) => self.child = Some(child),
            Err(error) => warn!(%error, "the proxy for Docker's API cannot be started"),
        }
    }

    fn start(&self, elsewhere: bool) -> io::Result<Child> {
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("weft")
            .args(["proxy", "--socket"])
            .arg(&self.router);
        if !elsewhere {
            command.env(DOCKER_HOST, format!("unix://{}", self.docker.display()));
        }
        for secret in launch::SECRETS {
            command.env_remove(secret);
        }
        // A group of its own: a Ctrl-C meant for the router does not end it.
        command.stdin(Stdio::null()).process_group(0).spawn()
    }
}

/// Where dockerd is, for the proxy; if it is set, that is not a socket to wait for.
const DOCKER_HOST: &str = "WEFT_DOCKER_HOST";
/// How often we look, which costs three system calls.
const INTERVAL: Duration = Duration::from_secs(2);
