//! Doing what a command says: calls to the router, and what is printed of their answers.

use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use thiserror::Error;
use weft_api::types::Connect;
use weft_api::{CallError, Cidr, Client};
use weft_plugin::attach::{AttachError, AttachOptions, attach};
use weft_plugin::detach::{DetachError, detach};
use weft_plugin::expose::{ExposeError, expose, hide};
use weft_plugin::list::{ListError, Listed, list};
use weft_plugin::names::{self, NameArgs, NamesError};
use weft_plugin::{AddressSpec, Target};

use crate::args::{
    AddressOrTarget, AttachArgs, ClientCommand, DnsNameArgs, ExposeArgs, GlobalArgs, IpOrTarget,
    SetupCommand, SetupDockerArgs, SetupDockerPluginArgs, StatusPart,
};
use crate::docker::{self, DockerSetupError, EnvError};
use crate::reset::{ResetError, reset};
use crate::template::{TemplateError, fill};
use crate::{Output, exit, status};

/// Why a command did not do what it says.
#[derive(Debug, Error)]
pub(crate) enum RunError {
    #[error("{0}")]
    Call(#[from] CallError),
    #[error("{0}")]
    Attach(#[from] AttachError),
    #[error("{0}")]
    Detach(#[from] DetachError),
    #[error("{0}")]
    Expose(#[from] ExposeError),
    #[error("{0}")]
    List(#[from] ListError),
    #[error("{0}")]
    Names(#[from] NamesError),
    #[error("{0}")]
    Reset(#[from] ResetError),
    #[error("{0}")]
    Template(#[from] TemplateError),
    #[error("{0}")]
    Env(#[from] EnvError),
    #[error("{0}")]
    Setup(#[from] DockerSetupError),
    #[error("the report cannot be turned into JSON: {0}")]
    Report(#[from] serde_json::Error),
    /// A part that was asked for is not there.
    #[error("{what} is switched off on this router ({flag})")]
    Off {
        /// The part.
        what: &'static str,
        /// The flag that did it.
        flag: &'static str,
    },
    #[error("{failed} of {asked} peers could not be taken over")]
    TakeOver { failed: usize, asked: usize },
    #[error("{0}")]
    StillRunning(#[from] StillRunning),
    #[error(
        "no container is named: end with a Docker name or id, pid:N, netns:NAME or netns:/PATH"
    )]
    NoContainer,
    #[error("two containers are named, {0} and {1}: name one")]
    TwoContainers(Target, Target),
    #[error("the system gives no random numbers: {0}")]
    Random(#[from] getrandom::Error),
    #[error("cannot write the result: {0}")]
    Output(#[source] io::Error),
    #[error("cannot start: {0}")]
    Runtime(#[source] io::Error),
}

/// A router that was told to stop and did not.
#[derive(Debug, Error)]
#[error("the router on {} still answers after {STOP_TIMEOUT:?}: look at its log", socket.display())]
pub(crate) struct StillRunning {
    socket: PathBuf,
}

impl RunError {
    /// The router's refusal among the causes, if there is one.
    fn call(&self) -> Option<&CallError> {
        let mut cause: Option<&(dyn Error + 'static)> = Some(self);
        while let Some(error) = cause {
            if let Some(call) = error.downcast_ref() {
                return Some(call);
            }
            cause = error.source();
        }
        None
    }

    fn exit_code(&self) -> u8 {
        let missing = self.call().is_some_and(CallError::is_not_found);
        if missing || matches!(self, Self::Off { .. }) {
            return exit::NOT_FOUND;
        }
        exit::ERROR
    }
}

type Done = Result<(), RunError>;

/// Does a command, prints its result or why there is none, and says what to end with.
pub fn run(command: ClientCommand, global: &GlobalArgs) -> ExitCode {
    let mut caller = Caller {
        client: Client::new(&global.socket),
        output: Output::new(global.json),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let code = match runtime {
        Ok(runtime) => runtime.block_on(caller.run(command)),
        Err(error) => caller.failed(&RunError::Runtime(error)),
    };
    ExitCode::from(code)
}

/// Whom to call and where to print.
struct Caller {
    client: Client,
    output: Output,
}

impl Caller {
    async fn run(&mut self, command: ClientCommand) -> u8 {
        match self.dispatch(command).await {
            Ok(()) => exit::OK,
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &RunError) -> u8 {
        let hint = error.call().and_then(CallError::hint);
        self.output.error(&error.to_string(), hint);
        error.exit_code()
    }

    async fn dispatch(&mut self, command: ClientCommand) -> Done {
        let client = &self.client;
        match command {
            ClientCommand::Stop => self.stop().await,
            ClientCommand::Reset(args) => {
                let notes = reset(client, &args).await?;
                notes.iter().for_each(|note| self.output.note(note));
                Ok(())
            }
            ClientCommand::Version => self.version().await,
            ClientCommand::Connect(args) => {
                let (targets, replace) = (args.peers, args.replace);
                Ok(client.connect(&Connect { targets, replace }).await?)
            }
            ClientCommand::Forget(args) => Ok(client.forget(args.peers).await?),
            ClientCommand::Prime => Ok(client.prime().await?),
            ClientCommand::Rmpeer(args) => self.rmpeer(&args.peers).await,
            ClientCommand::Attach(args) => self.attach(args).await,
            ClientCommand::Detach(args) => {
                let (addresses, target) = operands(args.operands)?;
                let taken = detach(client, &target, &addresses).await?;
                self.addresses(taken)
            }
            ClientCommand::Expose(args) => self.expose(args).await,
            ClientCommand::Hide(args) => {
                let taken = hide(client, &args.addresses).await?;
                self.addresses(taken)
            }
            ClientCommand::Ps(args) => {
                let listed = list(client, &args.targets).await?;
                self.ps(listed)
            }
            ClientCommand::DnsAdd(args) => {
                names::add(client, &name_args(args)?).await?;
                Ok(())
            }
            ClientCommand::DnsRemove(args) => {
                names::remove(client, &name_args(args)?).await?;
                Ok(())
            }
            ClientCommand::DnsLookup(args) => self.dns_lookup(&args.name).await,
            ClientCommand::DnsArgs => self.dns_args().await,
            ClientCommand::Env(args) => self.env(args.restore).await,
            ClientCommand::Setup(SetupCommand::Docker(args)) => self.setup_docker(args).await,
            ClientCommand::Setup(SetupCommand::DockerPlugin(args)) => {
                self.setup_docker_plugin(&args).await
            }
            ClientCommand::Status(args) => self.status(args.part).await,
            ClientCommand::Report(args) => self.report(args.format).await,
            ClientCommand::Password => self.password(),
        }
    }

    /// Stops the router and waits until it is gone. That there is none is worth a word, not an error,
    /// as with Weave Net.
    async fn stop(&mut self) -> Done {
        match self.client.stop().await {
            Err(CallError::NotRunning { .. }) => {
                self.output.note("the router is not running");
                Ok(())
            }
            Err(error) => Err(error.into()),
            Ok(()) => Ok(until_gone(&self.client).await?),
        }
    }

    async fn version(&mut self) -> Done {
        #[derive(Serialize)]
        struct Version {
            weft: &'static str,
            router: Option<String>,
        }
        let router = self.client.status().await.ok().map(|report| report.version);
        let version = Version {
            weft: env!("CARGO_PKG_VERSION"),
            router,
        };
        self.show(&version, |version| match &version.router {
            Some(router) if router != version.weft => {
                format!("weft {}\nrouter {router}\n", version.weft)
            }
            Some(_) | None => format!("weft {}\n", version.weft),
        })
    }

    /// Every peer is tried, whatever came of those before it.
    async fn rmpeer(&mut self, peers: &[String]) -> Done {
        #[derive(Serialize)]
        struct TakenOver<'a> {
            peer: &'a str,
            addresses: u64,
        }
        let mut taken = Vec::new();
        for peer in peers {
            match self.client.take_over(peer).await {
                Ok(answer) => taken.push(TakenOver {
                    peer,
                    addresses: answer.addresses,
                }),
                Err(error) if peers.len() == 1 => return Err(error.into()),
                Err(error) => self.output.error(&error.to_string(), error.hint()),
            }
        }
        self.show(&taken, |taken| {
            let line = |t: &TakenOver<'_>| {
                format!(
                    "{} IPs taken over from {}\n",
                    status::count(t.addresses),
                    t.peer
                )
            };
            taken.iter().map(line).collect()
        })?;
        let (failed, asked) = (peers.len() - taken.len(), peers.len());
        if failed > 0 {
            return Err(RunError::TakeOver { failed, asked });
        }
        Ok(())
    }

    async fn attach(&mut self, args: AttachArgs) -> Done {
        let options = AttachOptions {
            name: args.name,
            multicast_route: !args.no_multicast_route,
            dns: !args.without_dns,
            patience: None,
            network: args.network,
        };
        let (addresses, target) = operands(args.operands)?;
        let attached = attach(&self.client, &target, &addresses, &options).await?;
        attached
            .notes
            .iter()
            .for_each(|note| self.output.note(note));
        self.addresses(attached.addresses)
    }

    async fn env(&mut self, restore: bool) -> Done {
        let env = docker::env(self.client.socket(), restore).await?;
        env.notes.iter().for_each(|note| self.output.note(note));
        self.show(&env.variables, |_| env.shell.clone())
    }

    async fn setup_docker(&mut self, args: SetupDockerArgs) -> Done {
        for note in docker::setup(&args, &self.client).await? {
            self.output.note(&note);
        }
        Ok(())
    }

    async fn setup_docker_plugin(&mut self, args: &SetupDockerPluginArgs) -> Done {
        let note = docker::setup_plugin(args, self.client.socket()).await?;
        self.output.note(&note);
        Ok(())
    }

    async fn expose(&mut self, args: ExposeArgs) -> Done {
        let (name, masquerade) = (args.name.as_deref(), !args.without_masquerade);
        let exposed = expose(&self.client, &args.addresses, name, masquerade).await?;
        self.addresses(exposed)
    }

    /// Addresses on one line, without their prefix lengths, as scripts expect them.
    fn addresses(&mut self, addresses: Vec<Cidr>) -> Done {
        #[derive(Serialize)]
        struct Addresses {
            addresses: Vec<Cidr>,
        }
        self.show(&Addresses { addresses }, |shown| {
            let bare = shown.addresses.iter().map(|cidr| cidr.addr().to_string());
            let bare: Vec<String> = bare.collect();
            if bare.is_empty() {
                String::new()
            } else {
                bare.join(" ") + "\n"
            }
        })
    }

    fn ps(&mut self, listed: Vec<Listed>) -> Done {
        #[derive(Serialize)]
        struct Shown {
            container: String,
            mac: String,
            addresses: Vec<Cidr>,
        }
        let shown = |listed: Listed| Shown {
            container: listed.container,
            mac: listed.mac.to_string(),
            addresses: listed.addresses,
        };
        let shown: Vec<Shown> = listed.into_iter().map(shown).collect();
        self.show(&shown, |shown| {
            let mut text = String::new();
            for one in shown {
                text.push_str(&format!("{} {}", one.container, one.mac));
                for cidr in &one.addresses {
                    text.push_str(&format!(" {cidr}"));
                }
                text.push('\n');
            }
            text
        })
    }

    async fn dns_lookup(&mut self, name: &str) -> Done {
        #[derive(Serialize)]
        struct Found {
            addresses: Vec<IpAddr>,
        }
        let addresses = self.client.lookup(name).await?;
        self.show(&Found { addresses }, |found| {
            let lines = found.addresses.iter().map(|addr| format!("{addr}\n"));
            lines.collect()
        })
    }

    /// Without a line break, to be put in a `docker run` command; nothing at all if DNS is off.
    async fn dns_args(&mut self) -> Done {
        #[derive(Serialize)]
        struct DnsOptions {
            dns: Option<IpAddr>,
            search: Option<String>,
        }
        let network = self.client.network().await?;
        let options = DnsOptions {
            dns: network.dns.map(IpAddr::V4),
            search: network.domain,
        };
        self.show(&options, |options| match (&options.dns, &options.search) {
            (Some(dns), Some(search)) => format!("--dns={dns} --dns-search={search}"),
            (None, _) | (_, None) => String::new(),
        })
    }

    async fn status(&mut self, part: Option<StatusPart>) -> Done {
        let report = self.client.status().await?;
        let (router, output) = (&report.router, &mut self.output);
        let shown = match part {
            None => output.show(&report, status::overview),
            Some(StatusPart::Targets) => output.show(&router.targets, |t, _| status::targets(t)),
            Some(StatusPart::Connections) => output
                .show(&router.connections, |connections, paint| {
                    status::connections(connections, paint)
                }),
            Some(StatusPart::Peers) => {
                output.show(&router.peers, |peers, paint| status::peers(peers, paint))
            }
            Some(StatusPart::Macs) => output.show(&router.macs, |macs, _| status::macs(macs)),
            Some(StatusPart::Dns) => {
                let (what, flag) = ("DNS", "--no-dns");
                let dns = report.dns.as_ref().ok_or(RunError::Off { what, flag })?;
                output.show(dns, |dns, _| status::names(dns))
            }
            Some(StatusPart::Ipam) => {
                let (what, flag) = ("address allocation", "--ipalloc-range \"\"");
                let first = report.all_pools().next();
                let ipam = first.ok_or(RunError::Off { what, flag })?;
                output.show(ipam, |_, paint| status::pools(&report, paint))
            }
            Some(StatusPart::Networks) => {
                output.show(&report.networks, |networks, _| status::networks(networks))
            }
        };
        shown.map_err(RunError::Output)
    }

    async fn report(&mut self, format: Option<String>) -> Done {
        let report = self.client.status().await?;
        let Some(template) = format else {
            return self.output.json(&report).map_err(RunError::Output);
        };
        let mut text = fill(&template, &serde_json::to_value(&report)?)?;
        if !text.ends_with('\n') {
            text.push('\n');
        }
        self.output.text(&text).map_err(RunError::Output)
    }

    fn password(&mut self) -> Done {
        #[derive(Serialize)]
        struct Password {
            password: String,
        }
        let mut bits = [0; 16];
        getrandom::fill(&mut bits)?;
        let password = spelled(u128::from_be_bytes(bits));
        self.show(&Password { password }, |p| format!("{}\n", p.password))
    }

    fn show<T: Serialize>(&mut self, value: &T, text: impl FnOnce(&T) -> String) -> Done {
        let shown = self.output.show(value, |value, _| text(value));
        shown.map_err(RunError::Output)
    }
}

/// Waits until nobody answers on the socket any more.
pub(crate) async fn until_gone(client: &Client) -> Result<(), StillRunning> {
    let gone = async {
        while !matches!(client.network().await, Err(CallError::NotRunning { .. })) {
            tokio::time::sleep(STOP_POLL).await;
        }
    };
    let waited = tokio::time::timeout(STOP_TIMEOUT, gone).await;
    waited.map_err(|_| StillRunning {
        socket: client.socket().to_owned(),
    })
}

/// The addresses, and the one container there must be.
fn operands(operands: Vec<AddressOrTarget>) -> Result<(Vec<AddressSpec>, Target), RunError> {
    let mut addresses = Vec::new();
    let mut container = None;
    for operand in operands {
        match operand {
            AddressOrTarget::Address(address) => addresses.push(address),
            AddressOrTarget::Target(target) => name_once(&mut container, target)?,
        }
    }
    Ok((addresses, container.ok_or(RunError::NoContainer)?))
}

fn name_once(container: &mut Option<Target>, target: Target) -> Result<(), RunError> {
    match container.replace(target.clone()) {
        Some(first) => Err(RunError::TwoContainers(first, target)),
        None => Ok(()),
    }
}

fn name_args(args: DnsNameArgs) -> Result<NameArgs, RunError> {
    let mut names = NameArgs {
        addresses: Vec::new(),
        container: None,
        name: args.name,
    };
    for operand in args.operands {
        match operand {
            IpOrTarget::Ip(addr) => names.addresses.push(addr),
            IpOrTarget::Target(target) => name_once(&mut names.container, target)?,
        }
    }
    Ok(names)
}

/// 128 bits in 26 characters that are not mistaken for each other when read out.
fn spelled(bits: u128) -> String {
    let digit = |i: u32| {
        let five_bits = (bits >> (5 * i)) & 31;
        let index = usize::try_from(five_bits).unwrap_or_default();
        ALPHABET.get(index).copied().map(char::from)
    };
    (0..26).rev().filter_map(digit).collect()
}

/// Digits and letters without i, l, o and u (Crockford's base 32, in lower case).
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// How long a router may take to end: it says good-bye to its peers and flushes its state.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
const STOP_POLL: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use std::path::Path;

    use axum::Router;
    use axum::extract::Json;
    use axum::http::StatusCode;
    use axum::routing::{any, get, post};
    use clap::Parser;
    use serde_json::{Value, json};
    use tempfile::TempDir;
    use tokio::net::UnixListener;
    use weft_api::routes;

    use super::*;
    use crate::testing::{assert_kept, busy, fresh};

    #[derive(Debug, Parser)]
    struct Weft {
        #[command(flatten)]
        global: GlobalArgs,
        #[command(subcommand)]
        command: ClientCommand,
    }

    /// What a command printed and ended with.
    struct Ended {
        code: u8,
        results: String,
        remarks: String,
    }

    async fn weft(socket: &Path, args: &str) -> Ended {
        let args = ["weft"].into_iter().chain(args.split_whitespace());
        let weft = Weft::try_parse_from(args).unwrap();
        let (output, results, remarks) = Output::kept(weft.global.json);
        let client = Client::new(socket);
        let code = Caller { client, output }.run(weft.command).await;
        Ended {
            code,
            results: results.text(),
            remarks: remarks.text(),
        }
    }

    fn serve(router: Router) -> (TempDir, PathBuf) {
        let dir = TempDir::new().unwrap();
        let socket = dir.path().join("weft.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        (dir, socket)
    }

    fn not_found(error: &str, hint: &str) -> (StatusCode, Json<Value>) {
        let refusal = json!({ "error": error, "hint": hint });
        (StatusCode::NOT_FOUND, Json(refusal))
    }

    fn busy_router() -> Router {
        let unknown = not_found("no peer is called host9", "see `weft status peers`");
        Router::new()
            .route(routes::STATUS, get(async || Json(busy())))
            .route(routes::NETWORK, get(async || Json(busy().network)))
            .route(routes::PEER, any(async || unknown))
            .route(
                routes::NAME_LOOKUP,
                get(async || Json(json!({ "addresses": ["10.32.0.1", "10.32.0.2"] }))),
            )
    }

    #[tokio::test]
    async fn without_a_router_every_call_says_so_and_stop_is_content() {
        let dir = TempDir::new().unwrap();
        let socket = dir.path().join("weft.sock");
        for args in [
            "status",
            "connect host2",
            "prime",
            "expose",
            "dns-lookup c1",
            "attach pid:1",
        ] {
            let ended = weft(&socket, args).await;
            assert_eq!(ended.code, exit::ERROR, "{args}");
            assert!(
                ended.remarks.contains("weft: error: "),
                "{args}: {}",
                ended.remarks
            );
            assert_eq!(ended.results, "", "{args}");
        }
        let ended = weft(&socket, "stop").await;
        assert_eq!(
            (ended.code, ended.remarks.as_str()),
            (exit::OK, "weft: the router is not running\n")
        );
        let ended = weft(&socket, "version").await;
        assert_eq!(
            ended.results,
            concat!("weft ", env!("CARGO_PKG_VERSION"), "\n")
        );
    }

    #[tokio::test]
    async fn text_and_json_are_two_forms_of_one_answer() {
        let (_dir, socket) = serve(busy_router());
        let ended = weft(&socket, "status").await;
        assert_kept("status-busy.txt", &ended.results);
        let ended = weft(&socket, "--json status").await;
        assert_kept("status-busy.json", &ended.results);
        assert_eq!(weft(&socket, "report").await.results, ended.results);
        let ended = weft(&socket, "status connections --json").await;
        let connections: Value = serde_json::from_str(&ended.results).unwrap();
        assert_eq!(connections[3]["info"], "wrong password");
    }

    #[tokio::test]
    async fn a_report_can_be_cut_to_what_is_needed() {
        let (_dir, socket) = serve(busy_router());
        let ended = weft(
            &socket,
            "report -f {{router.peers.1.nickname}}:{{.Router.Port}}",
        )
        .await;
        assert_eq!(ended.results, "host2:6783\n");
        let ended = weft(&socket, "report -f {{router.nik}}").await;
        assert_eq!(ended.code, exit::ERROR);
        assert!(ended.remarks.contains("nickname"), "{}", ended.remarks);
    }

    #[tokio::test]
    async fn what_is_not_there_ends_with_four() {
        let router = Router::new()
            .route(routes::STATUS, get(async || Json(fresh())))
            .route(
                routes::NAME_LOOKUP,
                get(async || not_found("no such name", "see `weft status dns`")),
            );
        let (_dir, socket) = serve(router);
        let ended = weft(&socket, "dns-lookup c9").await;
        assert_eq!(ended.code, exit::NOT_FOUND);
        assert_eq!(
            ended.remarks,
            "weft: error: no such name\n      see `weft status dns`\n"
        );
        let ended = weft(&socket, "status ipam").await;
        assert_eq!(ended.code, exit::NOT_FOUND);
        let expected = "weft: error: address allocation is switched off on this router (--ipalloc-range \"\")\n";
        assert_eq!(ended.remarks, expected);
        assert_eq!(weft(&socket, "status dns").await.code, exit::NOT_FOUND);
    }

    #[tokio::test]
    async fn names_are_printed_as_scripts_expect_them() {
        let (_dir, socket) = serve(busy_router());
        let ended = weft(&socket, "dns-lookup c1").await;
        assert_eq!(ended.results, "10.32.0.1\n10.32.0.2\n");
        let ended = weft(&socket, "dns-args").await;
        assert_eq!(
            ended.results,
            "--dns=169.254.67.83 --dns-search=weft.local."
        );
        let ended = weft(&socket, "dns-args --json").await;
        let options: Value = serde_json::from_str(&ended.results).unwrap();
        assert_eq!(
            options,
            json!({ "dns": "169.254.67.83", "search": "weft.local." })
        );
    }

    #[tokio::test]
    async fn all_peers_are_tried_before_rmpeer_fails() {
        let taken = async |axum::extract::Path(peer): axum::extract::Path<String>| {
            if peer == "host9" {
                return Err(not_found(
                    "no peer is called host9",
                    "see `weft status peers`",
                ));
            }
            Ok(Json(json!({ "addresses": 262_144 })))
        };
        let (_dir, socket) = serve(Router::new().route(routes::PEER, any(taken)));
        let ended = weft(&socket, "rmpeer host9 host5").await;
        assert_eq!(ended.code, exit::ERROR);
        assert_eq!(ended.results, "262144 IPs taken over from host5\n");
        assert!(ended.remarks.contains("1 of 2 peers"), "{}", ended.remarks);
        let ended = weft(&socket, "rmpeer host5 --json").await;
        let taken: Value = serde_json::from_str(&ended.results).unwrap();
        assert_eq!(taken, json!([{ "peer": "host5", "addresses": 262_144 }]));
        assert_eq!(ended.code, exit::OK);
        let ended = weft(&socket, "rmpeer host9").await;
        assert_eq!((ended.code, ended.results.as_str()), (exit::NOT_FOUND, ""));
    }

    #[tokio::test]
    async fn what_is_asked_of_the_router_is_what_was_typed() {
        let connect = async |Json(body): Json<Value>| {
            assert_eq!(
                body,
                json!({ "targets": ["host2", "host3:6800"], "replace": true })
            );
            StatusCode::NO_CONTENT
        };
        let forget = async |Json(body): Json<Value>| {
            assert_eq!(body, json!({ "targets": ["host2"] }));
            StatusCode::NO_CONTENT
        };
        let router = Router::new()
            .route(routes::CONNECT, post(connect))
            .route(routes::FORGET, post(forget));
        let (_dir, socket) = serve(router);
        for args in ["connect --replace host2 host3:6800", "forget host2"] {
            let ended = weft(&socket, args).await;
            assert_eq!(
                (ended.code, ended.results.as_str()),
                (exit::OK, ""),
                "{args}"
            );
        }
    }

    #[tokio::test]
    async fn exactly_one_container_is_meant() {
        let (_dir, socket) = serve(busy_router());
        let ended = weft(&socket, "attach c1 c2").await;
        assert!(
            ended.remarks.contains("c1 and c2: name one"),
            "{}",
            ended.remarks
        );
        let ended = weft(&socket, "attach net:default").await;
        assert!(
            ended.remarks.contains("no container is named"),
            "{}",
            ended.remarks
        );
        let ended = weft(&socket, "dns-add 10.32.0.1 pid:1 pid:2").await;
        assert!(
            ended.remarks.contains("pid:1 and pid:2"),
            "{}",
            ended.remarks
        );
    }

    #[tokio::test]
    async fn passwords_are_fresh_and_of_the_promised_length() {
        let nowhere = Path::new("/nonexistent");
        let one = weft(nowhere, "password").await.results;
        let other = weft(nowhere, "password").await.results;
        assert_ne!(one, other);
        assert_eq!(one.trim_end().len(), 26);
        assert_eq!(spelled(0), "0".repeat(26));
        assert_eq!(spelled(u128::MAX), format!("7{}", "z".repeat(25)));
    }
}
