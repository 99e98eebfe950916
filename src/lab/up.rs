//! Bringing a lab up, step by step: hosts, routers, connections, containers, and then waiting until
//! every container reaches every other.
//!
//! Until the last step is done the lab hangs on a leash held by this process (see `lan`), and
//! whoever interrupts it takes the lab down: no half of a lab is left behind.

use std::fs;
use std::io::Write;
use std::process::{ChildStdin, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use weft_api::report::{Reach, Report};

use super::birth::Born;
use super::interrupt::Interruption;
use super::lan::STAY;
use super::layout::{Layout, Place};
use super::matrix::Matrix;
use super::running::Lab;
use super::state::{LabDir, LabName, LockedDir, Record};
use super::{DOMAIN, say};

/// What a lab is made of, and how its routers are launched.
#[derive(Debug, clap::Args)]
pub(crate) struct Wishes {
    #[command(flatten)]
    pub(crate) layout: Layout,
    /// Arguments for every `weft launch`
    #[arg(last = true, value_name = "LAUNCH_ARGUMENT")]
    pub(crate) launch: Vec<String>,
}

/// A lab on its way up; it ends with this value unless it is let go.
#[derive(Debug)]
pub(crate) struct Rising {
    locked: LockedDir,
    record: Record,
    lab: Lab,
    leash: ChildStdin,
    interruption: Interruption,
}

/// A container and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Attached {
    pub(crate) name: String,
    pub(crate) host: String,
    pub(crate) addresses: Vec<String>,
}

/// How long routers may take to find each other, and containers to reach each other; and more for each host.
const SETTLE_WITHIN: Duration = Duration::from_secs(30);
const SETTLE_EACH: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl Rising {
    /// Makes hosts and containers; none if a lab of this name is up already.
    ///
    /// # Errors
    /// If the system does not let us; nothing is left then.
    pub(crate) fn begin(name: &LabName, layout: Layout) -> Result<Option<Self>> {
        let interruption = Interruption::watch()?;
        let locked = LabDir::of(name).lock()?;
        if locked.dir().running()?.is_some() {
            return Ok(None);
        }
        let mut record = None;
        match bear(&locked, layout, &interruption, &mut record) {
            Ok((record, leash)) => {
                let lab = Lab::new(name.clone(), record.clone());
                Ok(Some(Self {
                    locked,
                    record,
                    lab,
                    leash,
                    interruption,
                }))
            }
            Err(error) => {
                interruption.yield_to();
                record.as_ref().map_or(Ok(()), Record::end)?;
                let log = fs::read_to_string(locked.dir().log()).unwrap_or_default();
                locked.remove()?;
                Err(if log.trim().is_empty() {
                    error
                } else {
                    error.context(log.trim().to_owned())
                })
            }
        }
    }

    /// The lab as it is so far.
    pub(crate) fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Launches routers, connects them, attaches the containers, and waits until all is settled.
    ///
    /// # Errors
    /// If a step fails; the routers' logs have been shown.
    pub(crate) fn weave(&self, launch: &[String]) -> Result<(Vec<Attached>, Matrix)> {
        let result = self.steps(launch);
        if result.is_err() {
            self.interruption.yield_to();
            say::progress(self.lab.router_logs().trim_end());
        }
        result
    }

    fn steps(&self, launch: &[String]) -> Result<(Vec<Attached>, Matrix)> {
        self.launch(launch)?;
        self.connect()?;
        let attached = self.attach()?;
        Ok((attached, self.settle()?))
    }

    fn launch(&self, arguments: &[String]) -> Result<()> {
        // The Docker of whoever runs this is none of the lab's business.
        let launch = ["weft", "launch", "--docker-socket="]
            .into_iter()
            .chain(arguments.iter().map(String::as_str));
        let words: Vec<_> = launch.collect();
        let hosts = self.lab.layout().hosts();
        let started: Result<Vec<_>> = hosts.map(|host| self.lab.start(host, &words)).collect();
        for launched in started? {
            launched.finish()?;
        }
        Ok(())
    }

    fn connect(&self) -> Result<()> {
        let layout = self.lab.layout();
        let Some(first) = layout.hosts().next() else {
            return Ok(());
        };
        for host in layout.hosts().skip(1) {
            self.lab
                .run(host, &["weft", "connect", &first.to_string()])?;
        }
        say::progress(&format!(
            "routers: launched on {} hosts, connected to {first} by name",
            layout.hosts
        ));
        let deadline = Instant::now() + settle_within(layout);
        for host in layout.hosts() {
            while reachable(&report(&self.lab, host)?) < usize::from(layout.hosts) {
                if Instant::now() > deadline {
                    let connections = self.lab.run(host, &["weft", "status", "connections"])?;
                    bail!(
                        "the routers did not find each other; {host} says:\n{}",
                        connections.trim_end()
                    );
                }
                thread::sleep(LOOK_AGAIN);
            }
        }
        Ok(())
    }

    fn attach(&self) -> Result<Vec<Attached>> {
        let layout = self.lab.layout();
        let mut attached = Vec::new();
        for host in 1..=layout.hosts {
            for container in layout.containers_of(host) {
                let (name, target) = (
                    format!("{container}.{DOMAIN}"),
                    format!("netns:{container}"),
                );
                let host = Place::Host(host);
                let printed = self
                    .lab
                    .run(host, &["weft", "attach", "--name", &name, &target])?;
                let addresses = printed.split_whitespace().map(str::to_owned).collect();
                attached.push(Attached {
                    name: container.to_string(),
                    host: host.to_string(),
                    addresses,
                });
            }
        }
        if !attached.is_empty() {
            say::progress(&format!("containers: {} attached", attached.len()));
        }
        Ok(attached)
    }

    fn settle(&self) -> Result<Matrix> {
        let deadline = Instant::now() + settle_within(self.lab.layout());
        loop {
            let matrix = Matrix::measure(&self.lab)?;
            if matrix.is_full() || Instant::now() > deadline {
                return Ok(matrix);
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Lets the lab outlive this process.
    ///
    /// # Errors
    /// If it is gone.
    pub(crate) fn let_go(mut self) -> Result<()> {
        writeln!(self.leash, "{STAY}").context("the lab has ended")
    }

    /// Takes the lab down again.
    ///
    /// # Errors
    /// If its processes do not end.
    pub(crate) fn take_down(self) -> Result<()> {
        self.interruption.yield_to();
        self.record.end()?;
        Ok(self.locked.remove()?)
    }
}

fn settle_within(layout: Layout) -> Duration {
    SETTLE_WITHIN + SETTLE_EACH * layout.hosts.into()
}

/// Bears the lab; `known` says which process is to be ended if that fails.
fn bear(
    locked: &LockedDir,
    layout: Layout,
    interruption: &Interruption,
    known: &mut Option<Record>,
) -> Result<(Record, ChildStdin)> {
    let mut born = Born::bear(Place::Lan, layout, Stdio::from(locked.new_log()?))?;
    let record = Record::of(born.pid, layout).context("the lab ended as soon as it began")?;
    *known = Some(record.clone());
    interruption.take_down(locked.dir(), &record);
    locked.keep(&record)?;
    born.go()?;
    Ok((record, born.ready()?))
}

/// What the router on a host says of itself.
///
/// # Errors
/// If none runs there.
pub(crate) fn report(lab: &Lab, host: Place) -> Result<Report> {
    let text = lab.run(host, &["weft", "report"])?;
    serde_json::from_str(&text).with_context(|| format!("cannot read the report of {host}"))
}

fn reachable(report: &Report) -> usize {
    let reached = |reach: Reach| match reach {
        Reach::Us | Reach::Direct | Reach::Via(_) => true,
        Reach::Unreachable => false,
    };
    report
        .router
        .peers
        .iter()
        .filter(|peer| reached(peer.reachable))
        .count()
}
