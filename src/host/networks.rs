//! The networks of this host beside the default one: a bridge and a TAP each, made when somebody first
//! uses the network and removed when nobody does any more.
//!
//! Their names come from the bridge's and the network's number, such as `weft-3fa2c1` and
//! `weft-3fa2c1t`. A note at both says whose they are, so that a link of somebody else is left alone and
//! `weft reset` finds ours.
//!
//! Invariant: the map of TAPs has a TAP for each network beside the default one, and no other.

use std::sync::Arc;

use anyhow::{Context, bail};
use weft_net::bridge::remove_link;
use weft_router::networks::choices;
use weft_wire::{Network, NetworkKey};

use super::{Host, Place};
use crate::dataplane::Taps;
use crate::state::Links;

/// What is left of the bridge's name in other bridges' names; Linux allows 15 bytes in all.
const MAX_PREFIX: usize = 7;
/// Links of others that may have the names we would give.
const MAX_TRIES: usize = 16;

impl Host {
    /// Brings a network up.
    ///
    /// # Errors
    /// The links cannot be made; what was made is removed again.
    pub(crate) async fn join(
        &mut self,
        key: &NetworkKey,
        number: Network,
        links: Links,
    ) -> anyhow::Result<()> {
        let tap = match self.make(key, &links).await {
            Ok(tap) => tap,
            Err(error) => {
                self.unmake(&links).await;
                return Err(error.context(format!("this host cannot be in the network {key}")));
            }
        };
        self.filter.add(&links.bridge);
        let mut taps = (*self.taps).clone();
        taps.insert(number, Arc::new(tap));
        self.taps = Arc::new(taps);
        let key = key.clone();
        self.networks.insert(number, Place { key, links });
        let entries = self.entries(number).await;
        self.unconfirmed.1.extend(entries);
        Ok(())
    }

    async fn make(&self, key: &NetworkKey, links: &Links) -> anyhow::Result<weft_net::tap::Tap> {
        let tap = self.bring_up(links).await?;
        let note = self.note(key);
        for link in [&links.bridge, &links.tap] {
            self.netlink.set_note(link, &note).await?;
        }
        Ok(tap)
    }

    /// Uses a network's links no more; they are still there.
    pub(crate) fn forget(&mut self, number: Network) -> Option<Links> {
        let place = self.networks.remove(&number)?;
        let mut taps = (*self.taps).clone();
        taps.remove(&number);
        self.taps = Arc::new(taps);
        self.filter.remove(&place.links.bridge);
        Some(place.links)
    }

    /// Removes such links, whatever is plugged in there.
    pub(crate) async fn unmake(&mut self, links: &Links) {
        for link in [&links.tap, &links.bridge] {
            if let Err(error) = remove_link(&self.netlink, link).await {
                self.warn(format!(
                    "the link {link} is not needed any more and stays: {error}"
                ));
            }
        }
    }

    /// Gives each network the number it has from now on; answers those that have another one.
    pub(crate) fn renumber(
        &mut self,
        number: impl Fn(&NetworkKey) -> Option<Network>,
    ) -> Vec<(NetworkKey, Network)> {
        let mut taps = Taps::new();
        let mut moved = Vec::new();
        for (before, place) in std::mem::take(&mut self.networks) {
            let now = number(&place.key).unwrap_or(before);
            if now != before {
                moved.push((place.key.clone(), now));
            }
            if let Some(tap) = self.taps.get(&before) {
                taps.insert(now, tap.clone());
            }
            self.networks.insert(now, place);
        }
        if !moved.is_empty() {
            self.taps = Arc::new(taps);
        }
        moved
    }

    /// The number and the bridge of a network this host has.
    pub(crate) fn network(&self, key: &NetworkKey) -> Option<(Network, &Links)> {
        let mut places = self.networks.iter();
        let (number, place) = places.find(|(_, place)| place.key == *key)?;
        Some((*number, &place.links))
    }

    /// All bridges, that of the default network first.
    pub(crate) fn bridges(&self) -> impl Iterator<Item = &str> {
        self.networks.values().map(|place| &*place.links.bridge)
    }

    /// Names for the links of a network that this host was not in before: of the numbers it may have, the
    /// first by which nothing else is called.
    ///
    /// # Errors
    /// All of them are taken.
    pub(crate) async fn fresh_links(&self, key: &NetworkKey) -> anyhow::Result<Links> {
        let note = self.note(key);
        let prefix = prefix(&self.bridge);
        for number in choices(key).take(MAX_TRIES) {
            let links = links(prefix, number);
            let mut free = true;
            for link in [&links.bridge, &links.tap] {
                let found = self
                    .netlink
                    .note(link)
                    .await
                    .context("cannot look at the links of this host")?;
                free &= found.is_none_or(|found| found == note);
            }
            if free {
                return Ok(links);
            }
        }
        bail!(
            "there are links already with each name that the network {key} may have here, such as {prefix}-…: remove those that nobody uses"
        )
    }

    /// What is written at the links of a network.
    fn note(&self, key: &NetworkKey) -> String {
        format!("{}{key}", weft_net::bridge::note_of(&self.bridge))
    }
}

fn links(prefix: &str, number: Network) -> Links {
    let [a, b, c] = number.to_bytes();
    let bridge = format!("{prefix}-{a:02x}{b:02x}{c:02x}");
    let tap = format!("{bridge}t");
    Links { bridge, tap }
}

/// The beginning of the default bridge's name.
fn prefix(bridge: &str) -> &str {
    let ends = bridge.char_indices().map(|(at, _)| at);
    let fitting = ends.chain([bridge.len()]).filter(|end| *end <= MAX_PREFIX);
    bridge.get(..fitting.max().unwrap_or(0)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_fit_whatever_the_bridge_is_called() {
        for (bridge, made) in [
            ("weft", "weft-3fa2c1"),
            ("a-long-bridge", "a-long--3fa2c1"),
            ("größer", "größe-3fa2c1"),
        ] {
            let links = links(prefix(bridge), Network::from_bytes([0x3f, 0xa2, 0xc1]));
            assert_eq!((&*links.bridge, links.tap), (made, format!("{made}t")));
            assert!(links.bridge.len() < 15);
        }
    }
}
