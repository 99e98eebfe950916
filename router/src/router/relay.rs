//! Messages between machines of two peers, which need not be neighbours.
//!
//! A message goes over the connection with its destination if there is one, established or not, else
//! along the control routes. Invariant: each pass costs it a hop, so views of the mesh that differ can
//! lose a message but not keep one going round.

use std::time::Instant;

use thiserror::Error;
use weft_wire::PeerName;
use weft_wire::control::{Control, MAX_CONTROL, Routed};
use weft_wire::message::HOP_LIMIT;

use crate::{ConnId, Event};

use super::Router;

/// A message cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SendError {
    /// No chain of connections leads there.
    #[error("no route to peer {0}")]
    NoRoute(PeerName),
    /// It is longer than a control message may be.
    #[error("a message of {0} bytes is too long; {MAX_BODY} may be sent")]
    TooLong(usize),
}

impl Router {
    /// Sends a message to a machine of the same kind at another peer. It may be lost on the way.
    ///
    /// # Errors
    /// The peer cannot be reached, or the message is too long.
    pub fn send(&mut self, to: PeerName, body: Vec<u8>, now: Instant) -> Result<(), SendError> {
        if body.len() > MAX_BODY {
            return Err(SendError::TooLong(body.len()));
        }
        let conn = self.way_to(to).ok_or(SendError::NoRoute(to))?;
        let message = Control::Routed(Routed {
            source: self.config.name,
            destination: to,
            hops: HOP_LIMIT,
            body,
        });
        self.send_control(conn, &message, now);
        self.finish(now);
        Ok(())
    }

    /// Sends a gossip envelope to a neighbour, or to a peer that is about to be one.
    ///
    /// # Errors
    /// The peer has no connection with us, or the envelope is too long.
    pub fn send_gossip(
        &mut self,
        to: PeerName,
        bytes: Vec<u8>,
        now: Instant,
    ) -> Result<(), SendError> {
        if bytes.len() > MAX_BODY {
            return Err(SendError::TooLong(bytes.len()));
        }
        let conn = self.conns.direct(to);
        let conn = conn.ok_or(SendError::NoRoute(to))?;
        self.send_control(conn, &Control::Gossip(bytes), now);
        self.finish(now);
        Ok(())
    }

    /// A neighbour has passed a message to us.
    pub(super) fn take_routed(&mut self, from: ConnId, routed: Routed, now: Instant) {
        let Routed {
            source,
            destination,
            hops,
            body,
        } = routed;
        if destination == self.config.name {
            return self.events.push_back(Event::Message { from: source, body });
        }
        let onward = self.way_to(destination).filter(|onward| *onward != from);
        // One of our own that came back, one too old, one to nowhere: whoever waits for an answer
        // must have a deadline anyway.
        if let (Some(onward), Some(hops), true) =
            (onward, hops.checked_sub(1), source != self.config.name)
        {
            let message = Control::Routed(Routed {
                source,
                destination,
                hops,
                body,
            });
            self.send_control(onward, &message, now);
        }
    }

    /// The connection control messages for this peer go over, never a relayed one.
    pub(super) fn way_to(&self, to: PeerName) -> Option<ConnId> {
        let direct = self.conns.direct(to);
        direct.or_else(|| self.conns.direct(*self.mesh.routes().control.get(&to)?))
    }
}

/// What is left of the longest control message beside the fields of a routed one.
const MAX_BODY: usize = MAX_CONTROL - 14;
