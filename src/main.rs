//! `weft`: one program, router and command line. Parses, then runs the one or calls the other.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use weft::{lab, launch, start};
use weft_cli::{ClientCommand, GlobalArgs, LaunchArgs, Output, exit};

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
    #[command(flatten)]
    Client(ClientCommand),
    /// Emulate a network of several hosts on this machine
    Lab(lab::LabArgs),
}

fn main() -> ExitCode {
    let Weft { global, command } = Weft::parse();
    let done = match command {
        Command::Lab(args) => return lab::run(args),
        Command::Client(command) => return weft_cli::run(command, &global),
        Command::Launch(args) => launch::launch(&global, &args),
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
