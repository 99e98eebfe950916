//! Two live routers with one name, as after copying a disk: the one that started first goes on, the other
//! keeps off the mesh, and both say so.
//!
//! Both find out by gossip, where the newer of two runs hides the older one. So the first begins a run that is
//! newer still; the other sees that one, and steps back. It keeps its own host's containers running.
//!
//! Invariant: who came first is decided by start time and run number alone, so both decide alike.

use std::time::{Duration, Instant};

use tracing::{error, info};
use weft_gossip::PeerInfo;

use super::Node;

/// Another router with our name.
pub(super) struct Clash {
    /// When it was last heard of.
    seen: Instant,
    generation: u64,
    /// The other one, for people.
    who: String,
    is_ours: bool,
}

impl Node {
    /// A run of our name that is not ours is newer than ours.
    pub(super) fn on_clash(&mut self, generation: u64, other: PeerInfo) -> anyhow::Result<()> {
        let now = Instant::now();
        let is_ours = (self.config.started, self.config.uid) < (other.started, other.uid);
        let who = format!("{} (run {})", other.nickname, other.uid);
        if self
            .mesh
            .clash
            .as_ref()
            .is_none_or(|clash| clash.who != who)
        {
            error!(name = %self.config.name, "{}", describe(&who, is_ours));
        }
        if !is_ours {
            let why = format!(
                "with {}, which has the same name and started before; give one of them another --name, or run `weft reset --identity` if its disk is a copy",
                other.nickname
            );
            self.router.stand_back(&why, now);
        }
        self.mesh.clash = Some(Clash {
            seen: now,
            generation,
            who,
            is_ours,
        });
        match is_ours {
            true => self.renew_gossip(generation),
            false => Ok(()),
        }
    }

    /// What time brings: the other one is forgotten; and where it was first and is gone, we are the one.
    pub(super) fn end_clash(&mut self) -> anyhow::Result<()> {
        let gone = |clash: &mut Clash| clash.seen.elapsed() > GONE;
        let Some(clash) = self.mesh.clash.take_if(gone) else {
            return Ok(());
        };
        info!(name = %self.config.name, "the other router with our name, {}, is not heard of any more", clash.who);
        match clash.is_ours {
            true => Ok(()),
            false => self.renew_gossip(clash.generation),
        }
    }

    /// For the status.
    pub(super) fn clash_warning(&self) -> Option<String> {
        let clash = self.mesh.clash.as_ref()?;
        Some(describe(&clash.who, clash.is_ours))
    }
}

fn describe(who: &str, is_ours: bool) -> String {
    let what = match is_ours {
        true => "this one started first and goes on",
        false => {
            "that one started first, so this one keeps off the mesh; its own containers still reach each other"
        }
    };
    format!(
        "name clash with {who}, another host with this peer's name: {what}. Give one of them another --name, or run `weft reset --identity` on the one whose disk is a copy"
    )
}

/// After so long without a word of the other one it is gone. One that keeps off the mesh is back after a
/// minute, and then hears within seconds.
const GONE: Duration = Duration::from_secs(120);
