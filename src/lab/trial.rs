//! Plain `weft lab`, `weft lab up` and `weft lab down`.

use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use super::layout::{Layout, Place};
use super::matrix::{Cell, Matrix};
use super::state::{LabDir, LabName};
use super::up::{Attached, Rising, Wishes};
use super::{NameArgs, say, tun};

/// Bring a lab up: hosts on a virtual LAN, a router on each, containers attached
#[derive(Debug, clap::Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    lab: NameArgs,
    /// Make hosts and containers only
    #[arg(long, conflicts_with = "launch")]
    no_router: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    wishes: Wishes,
}

/// Take a lab down: ends everything in it; nothing to do if it is not up
#[derive(Debug, clap::Args)]
pub(crate) struct DownArgs {
    #[command(flatten)]
    lab: NameArgs,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Findings {
    hosts: Vec<Host>,
    containers: Vec<Attached>,
    round_trips: Vec<Cell>,
    full: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Value>,
}

#[derive(Debug, Serialize)]
struct Host {
    name: String,
    address: String,
}

/// The exit status of an `up` that found the lab up, as `weft launch` has it.
const ALREADY_UP: u8 = 3;

/// Runs `weft lab up`.
pub(crate) fn up(args: &UpArgs) -> Result<ExitCode> {
    let layout = args.wishes.layout;
    if !args.no_router {
        tun::check()?;
    }
    let Some(rising) = begin(&args.lab.name, layout)? else {
        return Ok(ExitCode::from(ALREADY_UP));
    };
    if args.no_router {
        rising.let_go()?;
        return Ok(ExitCode::SUCCESS);
    }
    let (attached, matrix) = match rising.weave(&args.wishes.launch) {
        Ok(woven) => woven,
        Err(error) => {
            say::progress(&format!("weft lab: {error:#}"));
            rising.take_down()?;
            say::progress("the lab is down again");
            return Ok(ExitCode::FAILURE);
        }
    };
    rising.let_go()?;
    if args.json {
        say::line(&serde_json::to_string_pretty(&findings(
            layout, attached, &matrix, None,
        ))?)?;
    }
    if !matrix.is_full() {
        complain(&matrix);
        say::progress("the lab is up all the same: look around, and end it with `weft lab down`");
        return Ok(ExitCode::FAILURE);
    }
    if !args.json {
        say::line(&next_steps(args, layout))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs plain `weft lab`: up, show that it works, down.
pub(crate) fn try_out(name: &LabName, wishes: &Wishes, json: bool) -> Result<ExitCode> {
    tun::check()?;
    let Some(rising) = begin(name, wishes.layout)? else {
        return Ok(ExitCode::from(ALREADY_UP));
    };
    let shown = rising.weave(&wishes.launch).and_then(|(attached, matrix)| {
        if json {
            let status = rising.lab().run(Place::Host(1), &["weft", "report"])?;
            let status =
                serde_json::from_str(&status).context("cannot read the report of host1")?;
            let findings = findings(wishes.layout, attached, &matrix, Some(status));
            say::line(&serde_json::to_string_pretty(&findings)?)?;
        } else {
            show(&rising, &attached, &matrix)?;
        }
        Ok(matrix)
    });
    if shown.as_ref().is_ok_and(|matrix| !matrix.is_full()) {
        complain(shown.as_ref().unwrap_or(&Matrix::default()));
        say::progress(rising.lab().router_logs().trim_end());
    }
    rising.take_down()?;
    let matrix = shown?;
    say::progress("the lab is down");
    Ok(if matrix.is_full() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs `weft lab down`.
pub(crate) fn down(args: &DownArgs) -> Result<()> {
    let name = &args.lab.name;
    let locked = LabDir::of(name).lock()?;
    let running = locked.dir().running()?;
    if let Some(record) = &running {
        record.end()?;
    }
    locked.remove()?;
    say::progress(&if running.is_some() {
        format!("{} is down", name.in_words())
    } else {
        format!("{} is not up", name.in_words())
    });
    Ok(())
}

fn begin(name: &LabName, layout: Layout) -> Result<Option<Rising>> {
    let rising = Rising::begin(name, layout)?;
    match &rising {
        Some(_) => say::progress(&format!("hosts: {} on a virtual LAN", listed(layout))),
        None => say::progress(&format!(
            "{} is already up; you can take it down with `weft lab down`",
            name.in_words()
        )),
    }
    Ok(rising)
}

fn listed(layout: Layout) -> String {
    let hosts = layout
        .hosts()
        .filter_map(|host| Some(format!("{host} {}", host.address()?)));
    let hosts: Vec<_> = hosts.collect();
    match hosts.as_slice() {
        [first, _, _, _, .., last] => format!("{first} to {last}"),
        few => few.join(", "),
    }
}

fn show(rising: &Rising, attached: &[Attached], matrix: &Matrix) -> Result<()> {
    for Attached {
        name,
        host,
        addresses,
    } in attached
    {
        say::line(&format!("{name:<8} on {host:<8} {}", addresses.join(" ")))?;
    }
    say::line(&format!("\nround trips by name, in ms\n{matrix}"))?;
    for words in [
        ["weft", "status"].as_slice(),
        &["weft", "status", "connections"],
    ] {
        let printed = rising.lab().run(Place::Host(1), words)?;
        say::line(&format!(
            "\nhost1$ {}\n{}",
            words.join(" "),
            printed.trim_end()
        ))?;
    }
    Ok(())
}

fn complain(matrix: &Matrix) {
    say::progress("not every container reaches every other:");
    for failure in matrix.failures() {
        say::progress(&format!("  {failure}"));
    }
}

fn findings(
    layout: Layout,
    containers: Vec<Attached>,
    matrix: &Matrix,
    status: Option<Value>,
) -> Findings {
    let host = |place: Place| {
        Some(Host {
            name: place.to_string(),
            address: place.address()?.to_string(),
        })
    };
    Findings {
        hosts: layout.hosts().filter_map(host).collect(),
        containers,
        round_trips: matrix.cells(),
        full: matrix.is_full(),
        status,
    }
}

fn next_steps(args: &UpArgs, layout: Layout) -> String {
    let name = if args.lab.name.is_default() {
        String::new()
    } else {
        format!(" --name {}", args.lab.name)
    };
    let mut lines = vec![format!("weft lab exec{name} host1 -- weft status")];
    if layout.containers().count() > 1 {
        lines.push(format!("weft lab exec{name} c1 -- weft lab ping c2"));
    }
    lines.push(format!("weft lab down{name}"));
    format!("the lab is up; go on with\n  {}", lines.join("\n  "))
}
