//! What is done with the messages of neighbours: how two find out what each of them lacks.
//!
//! ```text
//!   rest ──► (sums differ, and go on doing so) buckets ──► digest ──► news: what the other one lacks
//!                                                              └────► want ──► news
//! ```
//!
//! While there is news, sums differ because it is on its way; so only a difference that stays is looked
//! into. Few runs are compared one by one at once. What does not fit into one message of news is
//! compared again when that one was taken: so there is one on its way, however much there is to tell.
//!
//! Sums are of the runs of peers within reach, and only these are told of: what is known of others is on
//! its way in or out. A digest names them, too, so that what is there already is not told again; but
//! nobody asks for them, except for a newer one with our own name: it hides ours, dead or alive. Whoever
//! hears that a neighbour tells of a run takes it for told (`view.rs` says what for): so a block may be
//! empty.
//!
//! Invariants: each message is answered by one nearer to the end of the comparison, and news that brings
//! nothing new is not answered at all, so it ends; a neighbour gets no more than [`MAX_ANSWERS`] between
//! two ticks, whatever it asks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tracing::{debug, warn};
use weft_wire::PeerName;

use crate::Gossip;
use crate::message::{self, Block, KNOWN_LEN, MAX_BODY, MAX_WANTED, Message, News};
use crate::run::{BUCKETS, Run};
use crate::store::{Applied, Known, MAX_HELD, MAX_KEYS, MAX_RUNS};

/// A difference is looked into at once if nothing was new for so long.
const QUIET: Duration = Duration::from_millis(500);
/// So many runs are compared one by one, without finding the parts that differ first.
const FEW: usize = 64;
/// The most answers a neighbour gets in a second: some 15 MB if all of them are full.
pub(crate) const MAX_ANSWERS: u32 = 256;

impl Gossip {
    /// Takes a message that came over the control connection to the neighbour `from`.
    ///
    /// A message that is no gossip is dropped and counted.
    pub fn handle_message(&mut self, from: PeerName, bytes: &[u8], now: Instant) {
        let Some(neighbour) = self.neighbours.get_mut(&from) else {
            return;
        };
        match message::parse(bytes) {
            Ok(message) => {
                self.counters.received += 1;
                self.take(from, message, now);
            }
            Err(error) => {
                self.counters.undecodable += 1;
                if std::mem::replace(&mut neighbour.warned, true) {
                    debug!(peer = %from, %error, "a gossip message cannot be read");
                } else {
                    warn!(peer = %from, %error, "what a peer says of itself and others cannot be read: does it run another version of weft?");
                }
            }
        }
    }

    fn take(&mut self, from: PeerName, message: Message<'_>, now: Instant) {
        match message {
            Message::Rest(sum) => self.on_rest(from, sum, now),
            Message::Buckets(sums) => self.on_buckets(from, &sums),
            Message::Digest(mask, runs) => self.on_digest(from, mask, runs, now),
            Message::Want(runs) => self.on_want(from, runs),
            Message::News { more, blocks } => self.on_news(from, more, &blocks, now),
        }
    }

    fn on_rest(&mut self, from: PeerName, theirs: u128, now: Instant) {
        let ours = self.sum();
        let quiet = now.saturating_duration_since(self.news_at) >= QUIET;
        let Some(neighbour) = self.neighbours.get_mut(&from) else {
            return;
        };
        let stays = std::mem::replace(&mut neighbour.differs, ours != theirs);
        if ours != theirs && (quiet || stays) {
            // Something did not arrive there.
            neighbour.has.clear();
            self.compare(from);
        }
    }

    fn on_buckets(&mut self, from: PeerName, theirs: &[u64]) {
        let ours = self.sums();
        let parts = ours.iter().zip(theirs).enumerate();
        let differ = parts.filter(|(_, (ours, theirs))| ours != theirs);
        let mask = differ.fold(0, |mask, (part, _)| mask | (1 << part));
        if mask != 0 {
            self.send_digest(from, mask);
        }
    }

    /// Tells what the other one lacks, and asks for what we do.
    ///
    /// Of a run that the other one has and does not tell of, it is told that we do.
    fn on_digest(
        &mut self,
        from: PeerName,
        mask: u64,
        theirs: Vec<(Run, Known, bool)>,
        now: Instant,
    ) {
        let told = self.told().filter(|run| mask & (1 << run.bucket()) != 0);
        let mut lacking: BTreeMap<Run, Known> = told.map(|run| (run, Known::default())).collect();
        let mut wanted = Vec::new();
        for (run, known, is_told) in theirs {
            let ours = self.store.known(run);
            let has_it = known.version >= ours.version;
            if has_it {
                self.note_has(from, run, known.version);
            }
            if has_it && is_told {
                lacking.remove(&run);
            } else if let Some(theirs) = lacking.get_mut(&run) {
                *theirs = known;
            }
            if is_told && known.version <= ours.version {
                self.note_told(run, now);
            } else if (is_told || run.name == self.us.name) && self.is_welcome(run) {
                wanted.push(run);
            }
        }
        // Each begins at its own place in the order, so that who asks many is told different runs.
        let behind = lacking.split_off(&self.us);
        self.tell(from, behind.into_iter().chain(lacking).collect());
        self.ask(from, wanted);
    }

    /// Tells what was asked for. Of a run that has come to be out of reach there is nothing to tell, but to
    /// whoever has its name.
    fn on_want(&mut self, from: PeerName, mut runs: Vec<(Run, Known)>) {
        let told: BTreeSet<Run> = self.told().collect();
        runs.retain(|(run, theirs)| {
            let is_told = told.contains(run) || run.name == from;
            is_told && theirs.version < self.store.known(*run).version
        });
        self.tell(from, runs);
    }

    fn on_news(&mut self, from: PeerName, more: bool, blocks: &[Block<'_>], now: Instant) {
        let (mut wanted, mut is_new) = (Vec::new(), false);
        for block in blocks {
            // Nobody else writes our keys; and what a peer said before it started again is of no use.
            if !self.is_welcome(block.run) {
                self.counters.refused += u64::from(block.run == self.us);
                continue;
            }
            match self.store.apply(block, now) {
                Applied::News(since) => {
                    is_new = true;
                    self.note_news(block.run, since, from, now);
                }
                Applied::Nothing | Applied::Behind => {}
                Applied::Full => {
                    self.refuse(1);
                    continue;
                }
            }
            self.note_has(from, block.run, block.until);
            if self.store.known(block.run).version < block.target {
                wanted.push(block.run);
            } else {
                self.note_told(block.run, now);
            }
        }
        let left_out = self.store.take_left_out();
        if left_out > 0 {
            self.refuse(left_out);
        }
        if let Some(neighbour) = self.neighbours.get_mut(&from).filter(|_| more) {
            // What else it was asked for is not on its way: there was no room for it.
            neighbour.asked.clear();
        }
        if more && is_new {
            self.compare(from);
        } else {
            self.ask(from, wanted);
        }
    }

    fn refuse(&mut self, times: u64) {
        self.counters.refused += times;
        if !std::mem::replace(&mut self.warned, true) {
            warn!(
                "there is no room for what all peers say: gossip holds {MAX_RUNS} peers, {MAX_KEYS} entries of each, and {} MiB, and what is beyond is not known here",
                MAX_HELD >> 20
            );
        }
    }

    /// Whether what is said of a run is taken in.
    fn is_welcome(&self, run: Run) -> bool {
        match run.name == self.us.name {
            true => run.generation > self.us.generation,
            false => self.view.newest(run.name) <= Some(run),
        }
    }

    /// Asks for the rest of these runs, unless it is on its way.
    fn ask(&mut self, from: PeerName, wanted: Vec<Run>) {
        let Some(neighbour) = self.neighbours.get_mut(&from) else {
            return;
        };
        let mut runs = Vec::new();
        for run in wanted.into_iter().take(MAX_WANTED) {
            let known = self.store.known(run);
            // Asked from where we were then: what has come since makes it another question.
            let is_asked = neighbour.asked.get(&run) == Some(&known.version);
            if !is_asked && neighbour.asked.len() < MAX_RUNS {
                neighbour.asked.insert(run, known.version);
                runs.push((run, known));
            }
        }
        if !runs.is_empty() {
            self.answer(from, message::want(&runs));
        }
    }

    /// Tells a neighbour these runs from where it knows them, as far as one message goes; of one that it
    /// knows as far as we do, that there is no more.
    fn tell(&mut self, to: PeerName, runs: Vec<(Run, Known)>) {
        let mut news = News::default();
        for (run, theirs) in runs {
            let Some(state) = self.store.get(run) else {
                continue;
            };
            let ours = state.known();
            let theirs = Known {
                version: theirs.version.min(ours.version),
                ..theirs
            };
            let (since, sets) = state.writes_since(theirs);
            news.add(run, ours, since, sets);
        }
        if !news.is_empty() {
            self.answer(to, news.into_bytes());
        }
    }

    /// Begins to compare what we know with a neighbour.
    pub(crate) fn compare(&mut self, with: PeerName) {
        if self.told().count() <= FEW {
            self.send_digest(with, u64::MAX);
        } else {
            let sums = self.sums();
            self.answer(with, message::buckets(&sums));
        }
    }

    fn send_digest(&mut self, to: PeerName, mask: u64) {
        let told: BTreeSet<Run> = self.told().collect();
        let mut parts: BTreeMap<u32, Vec<(Run, Known, bool)>> = BTreeMap::new();
        for (run, state) in self.store.iter() {
            let part = parts.entry(run.bucket()).or_default();
            part.push((run, state.known(), told.contains(&run)));
        }
        let (mut covered, mut runs) = (0, Vec::new());
        for part in (0..BUCKETS).filter(|part| mask & (1 << part) != 0) {
            let more = parts.remove(&part).unwrap_or_default();
            // What has no room is compared another time.
            if (runs.len() + more.len()) * KNOWN_LEN > MAX_BODY {
                break;
            }
            covered |= 1 << part;
            runs.extend(more);
        }
        self.answer(to, message::digest(covered, &runs));
    }

    /// Sends what a neighbour made us send, within its allowance; what is beyond is made up for by the
    /// next comparison.
    fn answer(&mut self, to: PeerName, bytes: Vec<u8>) {
        let Some(neighbour) = self.neighbours.get_mut(&to) else {
            return;
        };
        if neighbour.answers >= MAX_ANSWERS {
            self.counters.throttled += 1;
            return;
        }
        neighbour.answers += 1;
        self.send(to, bytes);
    }

    /// A message with all there is.
    #[cfg(test)]
    pub(crate) fn everything(&self) -> Vec<u8> {
        let mut news = News::default();
        for run in self.told() {
            let state = self.store.get(run).unwrap();
            let (since, sets) = state.writes_since(Known::default());
            news.add(run, state.known(), since, sets);
        }
        news.into_bytes()
    }

    /// Runs that others are told of: the newest of each peer within reach, and our own; in its place one
    /// with our name that hides it.
    fn told(&self) -> impl Iterator<Item = Run> {
        let own = self.clash.map_or(self.us, |(run, _)| run);
        self.view.within_reach().chain([own])
    }

    pub(crate) fn sum(&mut self) -> u128 {
        if let Some(sum) = self.sum {
            return sum;
        }
        let prints = self
            .told()
            .map(|run| run.print(self.store.known(run).version));
        let sum = prints.fold(0, u128::wrapping_add);
        self.sum = Some(sum);
        sum
    }

    fn sums(&self) -> Vec<u64> {
        let mut sums = vec![0_u64; BUCKETS as usize];
        for run in self.told() {
            if let Some(sum) = sums.get_mut(run.bucket() as usize) {
                // Half of the number does.
                *sum = sum.wrapping_add(run.print(self.store.known(run).version) as u64);
            }
        }
        sums
    }
}
