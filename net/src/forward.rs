//! Lets frames between two ports of one of our bridges past the host's packet filter, and keeps it so.
//!
//! Where the kernel shows bridged frames to the packet filter (`bridge-nf-call-iptables`, which is on
//! where Docker runs), they meet the rules for forwarded packets, whose policy Docker makes DROP:
//! containers on two hosts would not hear each other, without a word. One rule in each filter that may
//! drop accepts what comes from the bridge and goes to the same bridge; nothing else is let through,
//! and no setting of the host is changed.
//!
//! ```text
//!   iptables, legacy or nft, IPv4 and IPv6     DOCKER-USER where FORWARD leads there, else FORWARD
//!   nftables                                   each chain at the forward hook that drops by policy
//!                                              or by its last rule
//! ```
//! An accept in one filter does not overrule a drop in another; that is why there may be several rules.
//! Others (Docker, firewalld, people) flush what they take for theirs: a [`Guard`] looks again when
//! something changed.
//!
//! Invariant: the rule is once in a filter, and only where something could be dropped.

pub(crate) mod changes;
mod nft;
mod xtables;

use std::collections::BTreeSet;
use std::io;
use std::process::{Command, Output};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{info, warn};

use changes::Changes;

/// Why frames may be held back by the host's packet filter.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ForwardError {
    /// The kernel shows frames to a filter, and there is no tool to let them pass.
    #[error(
        "the host's packet filter sees frames between containers, and without `iptables` or `nft` weft cannot have them accepted: install one with `apt-get install iptables`"
    )]
    NoTool,
    /// The tool cannot be run, or refused.
    #[error(
        "frames between containers may be dropped by the host's packet filter: `{tool}`: {said}"
    )]
    Refused {
        /// Which tool.
        tool: String,
        /// What it said.
        said: String,
    },
    /// firewalld lets nobody else into its chains.
    #[error(
        "frames between containers may be dropped by firewalld: run `firewall-cmd --permanent --zone=trusted --add-interface={bridge}` and `firewall-cmd --reload` ({said})"
    )]
    Firewalld {
        /// The bridge.
        bridge: String,
        /// What `nft` said.
        said: String,
    },
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Forwarding {
    /// Bridged frames meet no filter that drops.
    NotFiltered,
    /// The rules were there.
    Accepted,
    /// A rule was missing and is there now.
    NowAccepted,
}

/// Has the host's packet filters accept frames that cross `bridge`, where one sees them and may drop
/// them.
///
/// # Errors
/// [`ForwardError`]; whether frames pass depends on the host's other rules then.
pub async fn accept(bridge: &str) -> Result<Forwarding, ForwardError> {
    let bridge = bridge.to_owned();
    in_background(move || accept_all(&bridge)).await
}

/// Takes the rules back. Where there is none, or no tool, there is nothing to take back.
pub async fn remove(bridge: &str) {
    let bridge = bridge.to_owned();
    let removed = in_background(move || {
        for filter in xtables::all() {
            filter.remove(&bridge);
        }
        nft::remove(&bridge);
        Ok(Forwarding::NotFiltered)
    });
    // Nothing in it fails.
    let _ = removed.await;
}

/// Keeps the rules of all our bridges in place while it is there.
#[derive(Debug)]
pub struct Guard {
    bridges: watch::Sender<BTreeSet<String>>,
    trouble: watch::Receiver<Option<ForwardError>>,
    task: AbortHandle,
}

impl Guard {
    /// Puts the rules for this bridge in, and puts them back whenever they are taken out. Tool calls
    /// run beside the caller, who never waits for them.
    pub fn start(bridge: &str) -> Self {
        let (sender, trouble) = watch::channel(None);
        let (bridges, those) = watch::channel(BTreeSet::from([bridge.to_owned()]));
        let task = tokio::spawn(keep(those, sender)).abort_handle();
        Self {
            bridges,
            trouble,
            task,
        }
    }

    /// Does the same for one more bridge.
    pub fn add(&self, bridge: &str) {
        self.bridges
            .send_if_modified(|bridges| bridges.insert(bridge.to_owned()));
    }

    /// Takes the rules of a bridge out.
    pub fn remove(&self, bridge: &str) {
        self.bridges
            .send_if_modified(|bridges| bridges.remove(bridge));
    }

    /// Why frames may be dropped at present, if they may.
    pub fn trouble(&self) -> Option<ForwardError> {
        self.trouble.borrow().clone()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep(
    mut bridges: watch::Receiver<BTreeSet<String>>,
    trouble: watch::Sender<Option<ForwardError>>,
) {
    let mut changes = Changes::watch();
    let mut before = BTreeSet::new();
    loop {
        let begun = Instant::now();
        // Looked at before the rules, so that what changes meanwhile counts as a change.
        changes.note();
        let those = bridges.borrow_and_update().clone();
        for gone in before.difference(&those) {
            remove(gone).await;
        }
        let mut found = Ok(Forwarding::NotFiltered);
        for bridge in &those {
            found = both(found, accept(bridge).await);
        }
        before = those;
        let changed = found == Ok(Forwarding::NowAccepted);
        let found = found.err();
        if let Some(error) = found.as_ref().filter(|_| *trouble.borrow() != found) {
            warn!("{error}");
        }
        trouble.send_replace(found);
        if changed {
            // What is noted next is how it should stay.
            info!("the host's packet filter lets frames pass");
        } else {
            let _ = timeout_at(begun + AT_LEAST_EVERY, async {
                tokio::select! {
                    () = changes.next() => {}
                    // Never an error: whoever drops the sender ends this task.
                    _ = bridges.changed() => {}
                }
            })
            .await;
        }
        // What changes rules often changes many; one look is enough for all.
        sleep(SETTLE.max((begun + AT_MOST_EVERY) - Instant::now())).await;
    }
}

async fn in_background(
    work: impl FnOnce() -> Result<Forwarding, ForwardError> + Send + 'static,
) -> Result<Forwarding, ForwardError> {
    let lost = |error| refused("the look at the packet filter", &io::Error::other(error));
    spawn_blocking(work).await.map_err(lost).flatten()
}

fn accept_all(bridge: &str) -> Result<Forwarding, ForwardError> {
    if !xtables::FAMILIES.iter().any(|family| family.is_filtered()) {
        return Ok(Forwarding::NotFiltered);
    }
    let filters = xtables::all();
    if filters.is_empty() && !nft::is_there() {
        return Err(ForwardError::NoTool);
    }
    // One filter that refuses is no reason to leave frames to another.
    let mut found = nft::accept(bridge, &filters);
    for filter in filters.iter().filter(|filter| filter.is_in_use()) {
        found = both(found, filter.accept(bridge));
    }
    found
}

/// What two looks have found: the first trouble, else the greater change.
fn both(
    one: Result<Forwarding, ForwardError>,
    other: Result<Forwarding, ForwardError>,
) -> Result<Forwarding, ForwardError> {
    match (one, other) {
        (Ok(one), Ok(other)) => Ok(one.max(other)),
        (Err(error), _) | (Ok(_), Err(error)) => Err(error),
    }
}

/// Runs a tool; none if there is no such tool.
fn run(tool: &str, arguments: &[&str]) -> Result<Option<Output>, ForwardError> {
    // An ordinary user's path, which `su` keeps, leaves the second place out.
    for program in [tool.to_owned(), format!("/usr/sbin/{tool}")] {
        match Command::new(&program).args(arguments).output() {
            Ok(output) => return Ok(Some(output)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(refused(tool, &error)),
        }
    }
    Ok(None)
}

fn refused(tool: &str, said: &impl ToString) -> ForwardError {
    ForwardError::Refused {
        tool: tool.to_owned(),
        said: said.to_string(),
    }
}

fn first_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.lines()
        .next()
        .unwrap_or("nothing said")
        .trim()
        .to_owned()
}

/// What the rules say of themselves.
const COMMENT: &str = "weft";
/// A look at all rules takes some milliseconds; it is taken this often even if nothing seems to change.
const AT_LEAST_EVERY: Duration = Duration::from_secs(60);
/// And not more often than this, whatever others do to their rules.
const AT_MOST_EVERY: Duration = Duration::from_secs(1);
/// How long rules may be changed before they are looked at.
const SETTLE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
