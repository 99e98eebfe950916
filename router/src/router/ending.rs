//! How connections end: what is remembered, who comes next, who is told.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use weft_wire::PeerName;
use weft_wire::control::{Refusal, RefusalReason};
use weft_wire::relayed::Part;

use crate::control::{ChannelError, Side};
use crate::dial::Ended;
use crate::failures::Failure;
use crate::link::{Link, Origin, Stage};
use crate::{ConnId, Event};

use super::admission::Before;
use super::{LINGER, Lingering, Router};

/// Why a connection ends.
#[derive(Debug)]
pub(super) enum End {
    /// We say why.
    Refuse(Refusal),
    /// The other side has said why.
    Refused(Refusal),
    /// What came makes no sense, or does not open.
    Broken(ChannelError),
    /// The stream is gone, or we give it up without a word.
    Closed(String),
}

impl Router {
    /// Ends a connection, whatever stage it is in; one that has ended before is left alone.
    pub(super) fn end(&mut self, conn: ConnId, end: End, now: Instant) {
        let Some(mut link) = self.conns.links.remove(&conn) else {
            return;
        };
        if matches!(end, End::Broken(ChannelError::WrongPassword)) {
            // Over others it is not the address that has tried one.
            if !self.conns.relays.contains(conn) {
                self.throttle.wrong_password(link.remote.ip(), now);
            }
        }
        let mut ended = describe(&link, &end, self.config.identity.public(), now);
        if ended.reason == Some(RefusalReason::Limit) {
            ended.at_least = self.while_full(&link.origin);
        }
        self.remember(&link, &end, &ended, now);
        self.succeed(conn, &link, &end, &ended, now);
        let unfinished = link.origin == Origin::Inbound && link.up().is_none();
        let place = unfinished.then(|| link.remote.ip());
        match end {
            End::Refuse(refusal) => self.farewell(conn, &mut link, refusal, place, now),
            End::Broken(error) => match error.refusal() {
                Some(refusal) => self.farewell(conn, &mut link, refusal, place, now),
                None => self.close(conn, place, now),
            },
            End::Refused(refusal) => {
                if !is_attempt(&link) {
                    self.note_refusal(link.remote, refusal, true);
                }
                self.close(conn, place, now);
            }
            End::Closed(_) => self.close(conn, place, now),
        }
    }

    /// For the log and the counters.
    pub(super) fn note_refusal(&mut self, remote: SocketAddr, refusal: Refusal, by_peer: bool) {
        let Refusal { reason, text } = refusal;
        self.events.push_back(Event::Refused {
            remote,
            reason,
            text,
            by_peer,
        });
    }

    /// Closes those that were told why they end long enough ago, or all.
    pub(super) fn close_lingering(&mut self, which: impl Fn(&Lingering) -> bool, now: Instant) {
        let lingering = self.conns.lingering.iter();
        let due = lingering.filter(|(_, lingering)| which(lingering));
        let due: Vec<_> = due.map(|(conn, l)| (*conn, l.place)).collect();
        for (conn, place) in due {
            self.conns.lingering.remove(&conn);
            self.close(conn, place, now);
        }
    }

    /// The last that is heard of a connection.
    pub(super) fn close(&mut self, conn: ConnId, place: Option<IpAddr>, now: Instant) {
        if let Some(ip) = place {
            self.throttle.finish(ip);
        }
        match self.conns.relays.remove(conn) {
            Some(relay) => self.send_part(relay, Part::End, now),
            None => self.events.push_back(Event::Close { conn }),
        }
    }

    /// Says why, and leaves the other side some time to read it: closing at once, with bytes of it
    /// unread, would make TCP throw our last words away.
    fn farewell(
        &mut self,
        conn: ConnId,
        link: &mut Link,
        refusal: Refusal,
        place: Option<IpAddr>,
        now: Instant,
    ) {
        link.channel.refuse(&refusal);
        let bytes = link.channel.take_output();
        self.write(conn, bytes, now);
        if !is_attempt(link) {
            self.note_refusal(link.remote, refusal, false);
        }
        let until = now + LINGER;
        self.conns
            .lingering
            .insert(conn, Lingering { until, place });
    }

    /// Keeps the reason of an inbound failure. Who went without a word before the handshake was done
    /// (a port scan, a health check) leaves no trace, and what is no fault neither.
    fn remember(&mut self, link: &Link, end: &End, ended: &Ended, now: Instant) {
        let told = match end {
            End::Refuse(refusal) | End::Refused(refusal) => !is_harmless(refusal.reason),
            End::Broken(_) => true,
            End::Closed(_) => link.up().is_some(),
        };
        if link.origin == Origin::Inbound && told {
            self.failures.add(Failure {
                remote: link.remote,
                peer: link.peer(),
                info: ended.why.clone(),
                at: now,
            });
        }
    }

    /// Another connection takes the place of the one that ended, or the peer is gone.
    fn succeed(&mut self, conn: ConnId, link: &Link, end: &End, ended: &Ended, now: Instant) {
        if let Stage::Up(up) = &link.stage {
            self.events.push_back(Event::Uninstall { conn });
            self.links_changed = true;
            if let Some((peer, _)) = link
                .peer()
                .filter(|(peer, _)| self.conns.peers.get(peer) == Some(&conn))
            {
                self.conns.peers.remove(&peer);
                match self.heir(conn, link) {
                    Some(heir) => self.install(heir, Before::of(up), now),
                    None => {
                        self.disconnected(peer, ended, up.announced, now);
                        self.fast_gone(peer, matches!(end, End::Closed(_)), now);
                    }
                }
            }
        } else if let Some(peer) = self.connected_otherwise(link, end) {
            self.dial_superfluous(&link.origin, conn, peer, now);
        } else {
            self.dial_ended(&link.origin, conn, ended, now);
        }
        for waiting in self.waiting_for(conn) {
            self.admit(waiting, now);
        }
    }

    /// A connection of the same run of the peer that only waited to be told to go on.
    fn heir(&self, conn: ConnId, link: &Link) -> Option<ConnId> {
        let uid = link.hello.as_ref()?.uid;
        let same_run = |heir: &ConnId| {
            let heir = self.conns.links.get(heir);
            heir.is_some_and(|heir| {
                !heir.is_held() && heir.hello.as_ref().is_some_and(|hello| hello.uid == uid)
            })
        };
        self.waiting_for(conn).into_iter().find(same_run)
    }

    fn disconnected(&mut self, peer: PeerName, ended: &Ended, announced: bool, now: Instant) {
        self.targets
            .peer_disconnected(peer, ended, &mut self.rng, now);
        self.discovery
            .peer_disconnected(peer, ended, &mut self.rng, now);
        let (why, reason) = (ended.why.clone(), ended.reason);
        self.peers_changed(now);
        if announced {
            let event = Event::Disconnected { peer, why, reason };
            self.events.push_back(event);
        }
    }

    /// The peer of a connection that ended because there is another one: as somebody said, or while
    /// it waited for that to be said.
    fn connected_otherwise(&self, link: &Link, end: &End) -> Option<PeerName> {
        let duplicate = match end {
            End::Refuse(refusal) | End::Refused(refusal) => {
                refusal.reason == RefusalReason::Duplicate
            }
            End::Broken(_) => false,
            End::Closed(_) => link.waits_for().is_some(),
        };
        // By its key: it may not have said its name.
        let key = link.key.filter(|_| duplicate)?;
        let mut peers = self.conns.peers.iter();
        let same = |conn| {
            self.conns
                .links
                .get(conn)
                .is_some_and(|link| link.key == Some(key))
        };
        peers.find(|(_, conn)| same(conn)).map(|(peer, _)| *peer)
    }
}

/// What a place to dial has to know of the end of its dial.
fn describe(link: &Link, end: &End, our_key: &[u8; 32], now: Instant) -> Ended {
    let (reason, why) = match end {
        End::Refuse(refusal) => (Some(refusal.reason), in_our_words(refusal)),
        End::Refused(refusal) => {
            let Refusal { reason, text } = refusal;
            (
                Some(*reason),
                format!("{} (peer says: {text})", reason.words()),
            )
        }
        End::Broken(error) => match error.refusal() {
            Some(refusal) => (Some(refusal.reason), in_our_words(&refusal)),
            None => (None, error.to_string()),
        },
        End::Closed(why) if link.side == Side::Initiator && link.is_mute() => (
            None,
            format!("{why}; it may be busy, or not answering after wrong passwords"),
        ),
        End::Closed(why) => (None, why.clone()),
    };
    let wrong_password = matches!(
        reason,
        Some(RefusalReason::WrongPassword | RefusalReason::Throttled)
    );
    Ended {
        why,
        reason,
        lived: link.up().map(|up| now.saturating_duration_since(up.since)),
        // Words in clear can be anybody's; only the key shows that it is us.
        ourselves: reason == Some(RefusalReason::OwnAddress) && link.key.as_ref() == Some(our_key),
        at_least: if wrong_password {
            AFTER_WRONG_PASSWORD
        } else {
            Duration::ZERO
        },
    }
}

/// Over others, and no datagram has come through: nothing that anybody need hear of.
fn is_attempt(link: &Link) -> bool {
    link.up().is_some_and(|up| !up.announced)
}

fn in_our_words(refusal: &Refusal) -> String {
    format!("{}: {}", refusal.reason.words(), refusal.text)
}

fn is_harmless(reason: RefusalReason) -> bool {
    match reason {
        RefusalReason::Duplicate
        | RefusalReason::OwnAddress
        | RefusalReason::Limit
        | RefusalReason::Unneeded => true,
        RefusalReason::WrongPassword
        | RefusalReason::PasswordOnOneSide
        | RefusalReason::OtherCluster
        | RefusalReason::Version
        | RefusalReason::NameClash
        | RefusalReason::Clone
        | RefusalReason::Range
        | RefusalReason::Throttled
        | RefusalReason::NoHeartbeat
        | RefusalReason::Stopping
        | RefusalReason::Protocol => false,
    }
}

/// Three wrong passwords in a minute bring silence upon our address, and the reason would be lost.
const AFTER_WRONG_PASSWORD: Duration = Duration::from_secs(40);
