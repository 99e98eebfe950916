//! The Linux side of the fast datapath: the VXLAN, who may send to it, which MACs go by it.
//!
//! The device is there only while somebody is let in, and comes up only behind its guard. What a run
//! before ours left is taken over as it is, since it may be carrying frames this very moment, and goes
//! when its time is over and nobody has confirmed it.
//!
//! Invariant: the bridge sends a MAC to the VXLAN only while the VXLAN knows where to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tracing::{debug, info};
use weft_net::packet::{PacketReceiver, PacketSender};
use weft_net::vxlan::guard::{self, Guard};
use weft_net::vxlan::{self, VxlanConfig};
use weft_net::{Netlink, fdb};
use weft_wire::fast::BEAT_ETHERTYPE;
use weft_wire::{MacAddr, Network, PeerName};

use crate::event::Input;

/// How long what a run before ours left may wait to be confirmed: as long as peers go on sending to it.
const INHERITED_FOR: Duration = Duration::from_secs(60);
/// Beats that are looked at together, and the pause after them: containers can send what looks like one.
const TOGETHER: usize = 16;
const PAUSE: Duration = Duration::from_millis(20);
/// Bytes of a beat that are read: there is no longer frame.
const LONGEST: usize = 65_535 + 14;

/// A MAC in a network.
pub(crate) type Key = (Network, MacAddr);

/// Where frames for a peer go.
pub(crate) type Destination = (Ipv4Addr, u16);

/// What is told of it.
#[derive(Debug, Clone)]
pub(crate) struct FastConfig {
    /// The UDP port of the VXLAN.
    pub(crate) port: u16,
    /// The device of the default network, and its bridge.
    pub(crate) device: String,
    pub(crate) bridge: String,
    /// Why it is not wanted, if it is not.
    pub(crate) off: Option<String>,
}

/// The fast datapath of this host.
pub(crate) struct FastPath {
    config: FastConfig,
    netlink: Netlink,
    inputs: mpsc::Sender<Input>,
    /// While somebody is let in.
    open: Option<Open>,
    admitted: BTreeMap<PeerName, Ipv4Addr>,
    /// Where the bridges of peers are that are sent beats.
    asked: BTreeMap<PeerName, Destination>,
    /// MACs that go by the VXLAN, and whose they are.
    placed: BTreeMap<Key, PeerName>,
    inherited: Inherited,
    /// Why it could not be opened, and when that was.
    failure: Option<(String, Instant)>,
}

/// What is there while somebody is let in.
struct Open {
    guard: Guard,
    /// The device's link number.
    index: u32,
    sender: PacketSender,
    listener: AbortHandle,
}

/// What a run before ours left.
#[derive(Debug, Default)]
struct Inherited {
    hosts: BTreeSet<Ipv4Addr>,
    macs: BTreeSet<Key>,
    /// Peers of which is known by now who carries their frames.
    decided: BTreeSet<PeerName>,
    until: Option<Instant>,
}

impl FastPath {
    /// Takes over what is there, or clears it away if it is not wanted.
    pub(crate) async fn start(
        config: FastConfig,
        netlink: Netlink,
        inputs: mpsc::Sender<Input>,
        now: Instant,
    ) -> Self {
        let mut path = Self {
            config,
            netlink,
            inputs,
            open: None,
            admitted: BTreeMap::new(),
            asked: BTreeMap::new(),
            placed: BTreeMap::new(),
            inherited: Inherited::default(),
            failure: None,
        };
        let name = path.config.device.clone();
        if !path.netlink.exists(&name).await.unwrap_or_default() {
            return path;
        }
        let kept = match &path.config.off {
            Some(why) => Err(anyhow::anyhow!("{why}")),
            None => path.take_over(now).await,
        };
        if let Err(error) = kept {
            info!("the VXLAN of an earlier run goes: {error:#}");
            path.close().await;
        }
        path
    }

    /// The port, if the fast datapath can be had, else why not.
    pub(crate) fn support(&self) -> Result<u16, String> {
        let trouble = self.open.as_ref().and_then(|open| open.guard.trouble());
        let failure = self.failure.as_ref().map(|(why, _)| why.clone());
        let why = self.config.off.clone().or(failure);
        match why.or(trouble.map(|trouble| trouble.to_string())) {
            Some(why) => Err(why),
            None => Ok(self.config.port),
        }
    }

    /// Lets a peer's host send.
    ///
    /// # Errors
    /// Why nobody can be let in; that is the answer of [`Self::support`] for a minute.
    pub(crate) async fn admit(
        &mut self,
        peer: PeerName,
        host: Ipv4Addr,
        now: Instant,
    ) -> Result<(), String> {
        self.admitted.insert(peer, host);
        let done = self.open_up().await.map_err(|error| format!("{error:#}"));
        if let Err(why) = &done {
            self.failure = Some((why.clone(), now));
            self.close().await;
        }
        done
    }

    /// Lets a peer's host send no more; with the last one the device goes.
    pub(crate) async fn bar(&mut self, peer: PeerName) {
        self.admitted.remove(&peer);
        let key = (Network::DEFAULT, peer.to_mac());
        if self.asked.remove(&peer).is_some() && !self.placed.contains_key(&key) {
            self.forget(key).await;
        }
        self.narrow().await;
    }

    /// Sends a frame to a peer's bridge.
    pub(crate) async fn send_beat(&mut self, peer: PeerName, to: Destination, frame: &[u8]) {
        if self.open.is_some() && self.asked.get(&peer) != Some(&to) {
            let name = &self.config.device;
            match vxlan::send_to(&self.netlink, name, peer.to_mac(), to).await {
                Ok(()) => drop(self.asked.insert(peer, to)),
                Err(error) => return debug!(%peer, %error, "no beat can be sent"),
            }
        }
        if let Some(open) = &self.open
            && let Err(error) = open.sender.send(open.index, frame)
        {
            debug!(%peer, %error, "no beat sent");
        }
    }

    /// Has the kernel send frames for a MAC to a peer's host.
    ///
    /// # Errors
    /// The kernel refused; what it did with the MAC before it goes on doing.
    pub(crate) async fn place(
        &mut self,
        key: Key,
        peer: PeerName,
        to: Destination,
    ) -> anyhow::Result<()> {
        let (network, mac) = key;
        let name = self.device_of(network);
        let name = name.with_context(|| format!("network {network} has no VXLAN"))?;
        vxlan::send_to(&self.netlink, name, mac, to).await?;
        fdb::fdb_replace(&self.netlink, mac, name).await?;
        self.placed.insert(key, peer);
        self.inherited.macs.remove(&key);
        Ok(())
    }

    /// Has the VXLAN forget a MAC which the bridge does not send there any more.
    pub(crate) async fn unplace(&mut self, key: Key) {
        let was = self.placed.remove(&key).is_some();
        let (network, mac) = key;
        if (self.inherited.macs.remove(&key) || was)
            && let Some(name) = self.device_of(network)
        {
            if let Err(error) = fdb::fdb_del(&self.netlink, mac, name).await {
                debug!(%mac, %error, "no bridge entry removed");
            }
            self.forget(key).await;
        }
    }

    /// Whose a MAC is that goes by the VXLAN.
    pub(crate) fn owner(&self, key: Key) -> Option<PeerName> {
        self.placed.get(&key).copied()
    }

    /// The MACs of a peer that go by the VXLAN.
    pub(crate) fn placed_of(&self, peer: PeerName) -> Vec<Key> {
        let placed = self.placed.iter().filter(|(_, owner)| **owner == peer);
        placed.map(|(key, _)| *key).collect()
    }

    /// Whether a run before ours had the kernel carry frames for this MAC, and nobody knows yet whether it
    /// should go on.
    pub(crate) fn is_inherited(&self, key: Key, peer: PeerName) -> bool {
        self.inherited.macs.contains(&key) && !self.inherited.decided.contains(&peer)
    }

    /// It is known who carries a peer's frames.
    pub(crate) fn decide(&mut self, peer: PeerName) {
        if self.inherited.until.is_some() {
            self.inherited.decided.insert(peer);
        }
    }

    /// What an earlier run left and nobody confirmed goes when its time is over, and failures are forgotten.
    pub(crate) async fn keep_house(&mut self, now: Instant) {
        if self.inherited.until.is_some_and(|until| now >= until) {
            for key in self.inherited.macs.clone() {
                self.unplace(key).await;
            }
            self.inherited = Inherited::default();
            self.narrow().await;
        }
        let again = |(_, at): &(String, Instant)| now >= *at + INHERITED_FOR;
        self.failure.take_if(|failure| again(failure));
    }

    /// The router ends in order.
    pub(crate) async fn stop(&mut self) {
        if self.open.is_some() {
            self.close().await;
        }
    }

    /// Takes the device and its guard away.
    async fn close(&mut self) {
        self.open = None;
        self.admitted.clear();
        self.asked.clear();
        self.placed.clear();
        self.inherited = Inherited::default();
        if let Err(error) = vxlan::remove(&self.netlink, &self.config.device).await {
            // The guard stays, then.
            return debug!(%error, "the VXLAN is not removed");
        }
        if let Err(error) = guard::remove().await {
            debug!(%error, "the guard before the VXLAN is not removed");
        }
    }

    /// The VXLAN of a network. So far only the default one has any; the others' frames go sealed.
    fn device_of(&self, network: Network) -> Option<&str> {
        (network == Network::DEFAULT).then_some(self.config.device.as_str())
    }

    fn device(&self) -> VxlanConfig {
        VxlanConfig {
            name: self.config.device.clone(),
            network: Network::DEFAULT,
            port: self.config.port,
        }
    }

    async fn take_over(&mut self, now: Instant) -> anyhow::Result<()> {
        let name = self.config.device.clone();
        if !vxlan::is_there(&self.netlink, &self.device()).await? {
            anyhow::bail!("{name} is another than is asked for");
        }
        let entries = vxlan::entries(&self.netlink, &name).await?;
        self.inherited.hosts = guard::admitted().await;
        if self.inherited.hosts.is_empty() {
            // Somebody took the guard away. Whom it let in shows in where we sent frames.
            self.inherited.hosts = entries.iter().map(|(_, host)| *host).collect();
        }
        let macs = fdb::fdb_dump_extern(&self.netlink, &name).await?;
        self.inherited.macs = macs
            .into_iter()
            .map(|mac| (Network::DEFAULT, mac))
            .collect();
        self.inherited.until = Some(now + INHERITED_FOR);
        self.open_up().await
    }

    /// Has the guard stand, and the device behind it.
    async fn open_up(&mut self) -> anyhow::Result<()> {
        let hosts = self.hosts();
        match &self.open {
            Some(open) => open.guard.admit(hosts).await?,
            None => {
                let guard = Guard::stand(self.config.port, hosts).await?;
                let device = self.device();
                let index =
                    vxlan::ensure_vxlan(&self.netlink, &device, &self.config.bridge).await?;
                let bridge = self.netlink.link_index(&self.config.bridge).await?;
                let receiver = PacketReceiver::open(bridge, BEAT_ETHERTYPE);
                let receiver = receiver.context("cannot listen on the bridge")?;
                let listening = tokio::spawn(listen(receiver, self.inputs.clone()));
                self.open = Some(Open {
                    guard,
                    index,
                    sender: PacketSender::new().context("cannot send packets")?,
                    listener: listening.abort_handle(),
                });
            }
        }
        Ok(())
    }

    /// Everybody who may send.
    fn hosts(&self) -> BTreeSet<Ipv4Addr> {
        let admitted = self.admitted.values().copied();
        admitted
            .chain(self.inherited.hosts.iter().copied())
            .collect()
    }

    /// Somebody may not be let in any more.
    async fn narrow(&mut self) {
        let hosts = self.hosts();
        if hosts.is_empty() {
            return self.close().await;
        }
        if let Some(open) = &self.open
            && let Err(error) = open.guard.admit(hosts).await
        {
            // Better nobody than somebody who should not be.
            self.failure = Some((error.to_string(), Instant::now()));
        }
    }

    /// Forgets where a MAC is, unless it is a bridge's that is sent beats.
    async fn forget(&self, (network, mac): Key) {
        let bridges = self.asked.keys().map(|peer| peer.to_mac());
        if network == Network::DEFAULT && bridges.into_iter().any(|bridge| bridge == mac) {
            return;
        }
        let Some(name) = self.device_of(network) else {
            return;
        };
        if let Err(error) = vxlan::forget(&self.netlink, name, mac).await {
            debug!(%mac, %error, "the VXLAN does not forget a MAC");
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

/// Hands what looks like a beat to the node. What does not fit is lost: others follow.
async fn listen(receiver: PacketReceiver, inputs: mpsc::Sender<Input>) {
    let mut buf = vec![0; LONGEST];
    for count in 1.. {
        match receiver.next(&mut buf).await {
            Ok(len) => {
                let frame = buf.get(..len).unwrap_or_default().to_vec();
                let _ = inputs.try_send(Input::Beat(frame));
            }
            Err(error) => {
                debug!(%error, "no beats can be received");
                tokio::time::sleep(PAUSE).await;
            }
        }
        if count % TOGETHER == 0 {
            tokio::time::sleep(PAUSE).await;
        }
    }
}
