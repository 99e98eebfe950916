//! Noticing that somebody changed the host's packet filter, at next to no cost.
//!
//! nftables, and with it iptables in its nft kind, tells everybody who listens. The legacy kind does
//! not: the number of its rules and their size are asked for, two system calls every two seconds.
#![expect(
    unsafe_code,
    reason = "getsockopt for a structure that no crate has, and waiting for a descriptor"
)]

use std::io;
use std::mem::size_of;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;
use tracing::debug;

use super::xtables::{FAMILIES, Family};

/// What others do to the packet filter of this network namespace.
#[derive(Debug)]
pub(crate) struct Changes {
    /// None where the kernel has no nftables.
    told: Option<AsyncFd<OwnedFd>>,
    noted: Seen,
}

/// What is compared.
type Seen = [(bool, Option<(u32, u32)>); 2];

impl Changes {
    /// Begins to listen.
    pub(crate) fn watch() -> Self {
        let told = listen().inspect_err(|error| {
            debug!(%error, "changes of nftables are noticed late");
        });
        Self {
            told: told.ok(),
            noted: Seen::default(),
        }
    }

    /// Forgets what was told so far and notes what there is: from here on something else is a change.
    pub(crate) fn note(&mut self) {
        if let Some(told) = &self.told {
            drain(told.get_ref());
        }
        self.noted = seen();
    }

    /// Waits for a change since then.
    pub(crate) async fn next(&mut self) {
        loop {
            tokio::select! {
                () = spoken(self.told.as_ref()) => return,
                () = sleep(LOOK_EVERY) => {}
            }
            if seen() != self.noted {
                return;
            }
        }
    }
}

/// A socket that is told of every change of nftables. One message is as good as many, so it may
/// overflow.
fn listen() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let protocol = SockProtocol::NetlinkNetFilter;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, NFTABLES_GROUP))?;
    // SAFETY: an owned descriptor is open, and the same one, until it is dropped.
    let registered = unsafe { AsyncFd::register(socket) };
    Ok(registered?)
}

/// Waits until something is told; for ever where nothing can be.
async fn spoken(told: Option<&AsyncFd<OwnedFd>>) {
    match told {
        None => std::future::pending().await,
        Some(told) => {
            if let Ok(mut ready) = told.readable().await {
                ready.clear_ready();
            }
        }
    }
}

fn drain(socket: &OwnedFd) {
    let mut bytes = [0; 4096];
    loop {
        match recv(socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
            // ENOBUFS says that messages were lost, after which there may be more.
            Ok(_) | Err(nix::errno::Errno::ENOBUFS | nix::errno::Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

fn seen() -> Seen {
    FAMILIES.map(|family| {
        let legacy = family.has_legacy_filter();
        let size = legacy.then(|| legacy_size(family)).flatten();
        (family.is_filtered(), size)
    })
}

/// What the kernel tells of a legacy table (`struct ipt_getinfo`, the same for IPv6).
#[derive(Default)]
#[repr(C)]
struct TableInfo {
    name: [u8; 32],
    valid_hooks: u32,
    hook_entries: [u32; 5],
    underflows: [u32; 5],
    entries: u32,
    size: u32,
}

/// How many entries the legacy filter has, and their size in bytes. Only for one that is in use: the
/// question would make it.
fn legacy_size(family: Family) -> Option<(u32, u32)> {
    let (any, level) = match family {
        Family::V4 => ("0.0.0.0:0", libc::SOL_IP),
        Family::V6 => ("[::]:0", libc::SOL_IPV6),
    };
    let socket = UdpSocket::bind(any).ok()?;
    let mut info = TableInfo::default();
    info.name[..6].copy_from_slice(b"filter");
    let mut length = libc::socklen_t::try_from(size_of::<TableInfo>()).ok()?;
    // SAFETY: the descriptor is open, `info` is writable for `length` bytes and lives through the call.
    let asked = unsafe {
        let info = (&raw mut info).cast();
        libc::getsockopt(socket.as_raw_fd(), level, GET_INFO, info, &raw mut length)
    };
    (asked == 0).then_some((info.entries, info.size))
}

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
const GET_INFO: libc::c_int = 64;
/// The bit of `NFNLGRP_NFTABLES`, which is group 7.
const NFTABLES_GROUP: u32 = 1 << 6;
/// How often the legacy filter and the kernel's settings are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
