//! `weft`: one program, router, command line and OCI runtime. Parses, then runs the one or calls the
//! other.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use weft::{lab, launch, plugin, proxy, start};
use weft_cli::{ClientCommand, GlobalArgs, LaunchArgs, Output, ProxyArgs, exit};
use weft_plugin::runtime;

/// One Ethernet for containers on many hosts, by name, with nothing else to run
#[derive(Parser)]
#[command(name = "weft", version, max_term_width = 100)]
struct Weft {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Launch(Box<LaunchArgs>),
    Proxy(ProxyArgs),
    #[command(flatten)]
    Client(ClientCommand),
    /// Emulate a network of several hosts on this machine
    Lab(lab::LabArgs),
    Plugin(plugin::PluginArgs),
}

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    if let Some(code) = called_by_docker(&words) {
        return code;
    }
    let Weft { global, command } = Weft::parse();
    let done = match command {
        Command::Lab(args) => return lab::run(args),
        Command::Client(command) => return weft_cli::run(command, &global),
        Command::Plugin(args) => plugin::run(&global.socket, &args).map(|()| exit::OK),
        Command::Launch(args) => launch::launch(&global, &args),
        Command::Proxy(args) => proxy::run(&global, &args),
    };
    match done {
        Ok(code) => code.into(),
        Err(error) => {
            Output::new(global.json).error(&format!("{error:#}"), None);
            let running = error.is::<start::AlreadyRunning>();
            if running {
                exit::ALREADY_RUNNING
            } else {
                exit::ERROR
            }
            .into()
        }
    }
}

/// What container engines call for each container, which must cost next to nothing: they are known
/// by their names alone.
fn called_by_docker(words: &[OsString]) -> Option<ExitCode> {
    let (called, rest) = words.split_first()?;
    if Path::new(called)
        .file_name()
        .is_some_and(|name| name == runtime::NAME)
    {
        return Some(runtime::run(rest));
    }
    let (command, rest) = rest.split_first()?;
    match command.to_str()? {
        "runc" => Some(runtime::run(rest)),
        "hook" => Some(runtime::hook::run(rest)),
        _ => None,
    }
}
