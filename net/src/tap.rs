//! The router's end of its port on the bridge: frames out of the kernel, frames into it.
//!
//! Each frame has a header before it in which the kernel says, and is told, what is still to be done to
//! the frame: a checksum to fill in, a super-frame to cut into frames. So a container's 64 KiB cross the
//! border in one call. What the header means is not this crate's affair.
//!
//! Synchronous, for the plain threads of the data plane. The device is *persistent*: it stays when
//! the router ends, so that the bridge keeps its port, its entries and its MTU over a restart; while
//! nobody is attached it has no carrier and nothing queues up.
//!
//! Invariant: one reader at a time. A device somebody else is attached to is another router's.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;
use thiserror::Error;
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

/// An attached TAP device. One thread may receive while others send.
#[derive(Debug)]
pub struct Tap {
    device: Device,
    cuts_udp: bool,
}

/// Why there is no TAP device.
#[derive(Debug, Error)]
pub enum TapError {
    /// Somebody is attached to it.
    #[error(
        "the TAP device {0} is in use: another weft router is running with it; stop that one, or choose another name with --tap"
    )]
    Busy(String),
    /// There is no way to the TUN/TAP driver.
    #[error(
        "cannot open {TUN}: {0}; run weft as root, and load the driver with `modprobe tun`; in a container, start it with `--device {TUN}`"
    )]
    NoDriver(#[source] io::Error),
    /// We may not make or attach to devices.
    #[error(
        "cannot attach to the TAP device {name}: {source}; weft needs the capability CAP_NET_ADMIN: run it as root, or its container with `--cap-add NET_ADMIN`"
    )]
    Forbidden {
        /// The device.
        name: String,
        /// How it failed.
        source: io::Error,
    },
    /// There is a link of this name that is no TAP device.
    #[error(
        "there is a link {0} that is not a TAP device: remove it, or choose another name with --tap"
    )]
    NotATap(String),
    /// It failed otherwise.
    #[error("cannot attach to the TAP device {name}: {source}")]
    Attach {
        /// The device.
        name: String,
        /// How it failed.
        source: io::Error,
    },
}

impl Tap {
    /// Attaches to a device of this network namespace. If there is none, or one of another kind
    /// (several queues, no Ethernet), it is made anew, and then has yet to become a port of the bridge.
    ///
    /// # Errors
    /// [`TapError`] says what to do.
    pub fn attach(name: &str) -> Result<Self, TapError> {
        let device = match open(name, Kind::OURS) {
            Err(error) if error.raw_os_error() == Some(EINVAL) => {
                remove_other_kinds(name);
                open(name, Kind::OURS)
            }
            other => other,
        };
        let device = device.map_err(|error| explain(name, error))?;
        let failed = |source| TapError::Attach {
            name: name.to_owned(),
            source,
        };
        device.persist().map_err(failed)?;
        let cuts_udp = set_offloads(&device).map_err(failed)?;
        Ok(Self {
            device: Device(device),
            cuts_udp,
        })
    }

    /// Waits for the next frame and copies it to the front of `buf`, behind its header, cut off if
    /// there is too little room. Answers the length of both.
    ///
    /// # Errors
    /// If the device is gone.
    pub fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.device.0.recv(buf) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }

    /// As [`Tap::recv`], but answers `None` if there is no frame yet.
    ///
    /// # Errors
    /// If the device is gone.
    pub fn recv_now(&self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        let part = libc::iovec {
            iov_base: buf.as_mut_ptr().cast(),
            iov_len: buf.len(),
        };
        // SAFETY: the descriptor is open, and the one part is a buffer that outlives the call.
        let len = unsafe {
            libc::preadv2(
                self.device.0.as_raw_fd(),
                &raw const part,
                1,
                -1,
                libc::RWF_NOWAIT,
            )
        };
        match usize::try_from(len) {
            Ok(len) => Ok(Some(len)),
            Err(_) => {
                let error = io::Error::last_os_error();
                let nothing_there = [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted];
                if nothing_there.contains(&error.kind()) {
                    Ok(None)
                } else {
                    Err(error)
                }
            }
        }
    }

    /// Hands a frame to the bridge. Never waits.
    ///
    /// # Errors
    /// If the device is down or gone, has no room, or the header does not fit the frame.
    pub fn send(&self, header: &[u8; HEADER_LEN], frame: &[u8]) -> io::Result<()> {
        let parts = [IoSlice::new(header), IoSlice::new(frame)];
        self.device.0.send_vectored(&parts).map(|_| ())
    }

    /// Whether the kernel cuts super-frames of UDP datagrams that are sent to it (since Linux 6.2).
    pub fn cuts_udp(&self) -> bool {
        self.cuts_udp
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.0.as_fd()
    }
}

/// The library's device prints nothing of itself.
struct Device(SyncDevice);

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Device").field(&self.0.as_raw_fd()).finish()
    }
}

/// What must agree when attaching to a device that is there already.
#[derive(Debug, Clone, Copy)]
struct Kind {
    layer: Layer,
    queues: bool,
}

impl Kind {
    const OURS: Self = Self {
        layer: Layer::L2,
        queues: false,
    };
    const OTHERS: [Self; 3] = [
        Self {
            layer: Layer::L2,
            queues: true,
        },
        Self {
            layer: Layer::L3,
            queues: false,
        },
        Self {
            layer: Layer::L3,
            queues: true,
        },
    ];
}

fn open(name: &str, kind: Kind) -> io::Result<SyncDevice> {
    DeviceBuilder::new()
        .name(name)
        .layer(kind.layer)
        .with(|options| {
            options.multi_queue(kind.queues);
            // A header before each frame; asking for it changes a device that was without.
            options.offload(true);
        })
        // Whether it is up is decided when it is a port of the bridge.
        .inherit_enable_state()
        .build_sync()
}

/// Says how long the header is and what the kernel need not do to frames before we read them; answers
/// whether UDP super-frames are among it. The device keeps both when nobody is attached, whoever set
/// them, so they are set at every attach.
fn set_offloads(device: &SyncDevice) -> io::Result<bool> {
    let fd = device.as_raw_fd();
    let len = HEADER_LEN as libc::c_int;
    // SAFETY: the descriptor is open, and the pointer is to an integer that outlives the call, which
    // only reads it.
    unsafe { tun_set_header_len(fd, &raw const len) }?;
    let mut refused = Errno::EINVAL;
    for (offloads, with_udp) in [(TCP | UDP, true), (TCP, false), (0, false)] {
        // SAFETY: the descriptor is open, and the request takes its argument by value.
        match unsafe { tun_set_offload(fd, offloads.into()) } {
            Ok(_) => return Ok(with_udp),
            Err(errno) => refused = errno,
        }
    }
    Err(refused.into())
}

/// A device of another kind is ours from an older or newer weft, or left by somebody: attached to in
/// its own way, it can be made to vanish. If it cannot, attaching will say so.
fn remove_other_kinds(name: &str) {
    for kind in Kind::OTHERS {
        if let Ok(device) = open(name, kind) {
            // SAFETY: the descriptor is open, and the request takes its argument by value.
            let _ = unsafe { tun_set_persist(device.as_raw_fd(), 0) };
            return;
        }
    }
}

fn explain(name: &str, source: io::Error) -> TapError {
    if let Err(error) = File::options().read(true).write(true).open(TUN) {
        return TapError::NoDriver(error);
    }
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(EBUSY) => TapError::Busy(name),
        Some(EPERM) => TapError::Forbidden { name, source },
        Some(EINVAL) => TapError::NotATap(name),
        Some(_) | None => TapError::Attach { name, source },
    }
}

nix::ioctl_write_int! {
    /// Whether the device stays when nobody is attached, by linux/if_tun.h.
    tun_set_persist, b'T', 203
}

nix::ioctl_write_int! {
    /// What may be left undone, by linux/if_tun.h.
    tun_set_offload, b'T', 208
}

nix::ioctl_write_ptr! {
    /// Length of the header before each frame, by linux/if_tun.h.
    tun_set_header_len, b'T', 216, libc::c_int
}

/// Bytes before each frame (`struct virtio_net_hdr`).
pub const HEADER_LEN: usize = 10;
/// Checksums and TCP over IPv4 and IPv6 left undone, marks of congestion among it.
const TCP: u32 = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
/// UDP left undone.
const UDP: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;
const TUN: &str = "/dev/net/tun";
const EPERM: i32 = Errno::EPERM as i32;
const EBUSY: i32 = Errno::EBUSY as i32;
const EINVAL: i32 = Errno::EINVAL as i32;

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::testing;

    /// Attaches to a device that was let go. A process that another test is starting holds a copy of our
    /// descriptor until it executes its program, so that takes a moment.
    fn attach_again() -> Tap {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match Tap::attach("weft-tap") {
                Err(error) if deadline < Instant::now() => panic!("{error}"),
                Err(_) => thread::sleep(Duration::from_millis(1)),
                Ok(tap) => return tap,
            }
        }
    }

    fn frame(tail: &[u8]) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
        frame.extend(tail);
        frame.resize(60, 0);
        frame
    }

    #[test]
    fn a_device_in_use_is_another_routers() {
        testing::in_namespace(async |_, _| {
            let _tap = Tap::attach("weft-tap").unwrap();
            let error = Tap::attach("weft-tap").unwrap_err();
            assert!(matches!(error, TapError::Busy(_)), "{error}");
            assert!(error.to_string().contains("--tap"), "{error}");
        });
    }

    #[test]
    fn the_device_outlives_the_router_and_is_attached_to_again() {
        testing::in_namespace(async |netlink, _| {
            let tap = Tap::attach("weft-tap").unwrap();
            let index = netlink.link_index("weft-tap").await.unwrap();
            drop(tap);
            assert!(netlink.exists("weft-tap").await.unwrap());
            let _tap = attach_again();
            assert_eq!(netlink.link_index("weft-tap").await.unwrap(), index);
        });
    }

    #[test]
    fn a_device_of_another_kind_is_made_anew() {
        for kind in Kind::OTHERS {
            testing::in_namespace(async move |netlink, _| {
                open("weft-tap", kind).unwrap().persist().unwrap();
                let index = netlink.link_index("weft-tap").await.unwrap();
                let _tap = attach_again();
                assert_ne!(
                    netlink.link_index("weft-tap").await.unwrap(),
                    index,
                    "{kind:?}"
                );
            });
        }
    }

    #[test]
    fn a_device_left_without_headers_has_them_after_attaching() {
        testing::in_namespace(async |_, _| {
            let plain = DeviceBuilder::new().name("weft-tap").layer(Layer::L2);
            let plain = plain.inherit_enable_state().build_sync().unwrap();
            plain.persist().unwrap();
            drop(plain);
            let tap = attach_again();
            let flags = std::fs::read_to_string("/sys/class/net/weft-tap/tun_flags");
            // The file shows the namespace that mounted it; where that is not ours, ask the device.
            if let Ok(flags) = flags {
                let flags = i32::from_str_radix(flags.trim().trim_start_matches("0x"), 16);
                assert_ne!(flags.unwrap() & libc::IFF_VNET_HDR, 0);
            }
            let mut len = 0;
            // SAFETY: the descriptor is open, and the pointer is to an integer that outlives the call.
            unsafe { tun_get_header_len(tap.device.0.as_raw_fd(), &raw mut len) }.unwrap();
            assert_eq!(len, 10);
        });
    }

    nix::ioctl_read! {
        tun_get_header_len, b'T', 215, libc::c_int
    }

    #[test]
    fn another_kind_of_link_is_not_touched() {
        testing::in_namespace(async |netlink, _| {
            netlink.add_bridge("weft-tap").await.unwrap();
            let error = Tap::attach("weft-tap").unwrap_err();
            assert!(matches!(error, TapError::NotATap(_)), "{error}");
            assert!(netlink.exists("weft-tap").await.unwrap());
        });
    }

    #[test]
    fn frames_pass_both_ways() {
        testing::in_namespace(async |netlink, _| {
            let one = Tap::attach("one").unwrap();
            let other = Tap::attach("other").unwrap();
            netlink.add_bridge("lan").await.unwrap();
            for link in ["one", "other"] {
                netlink.set_no_own_addresses(link).await.unwrap();
                netlink.set_master(link, "lan").await.unwrap();
                netlink.set_up(link).await.unwrap();
            }
            netlink.set_no_own_addresses("lan").await.unwrap();
            netlink.set_up("lan").await.unwrap();
            crate::links::wait_until_forwarding(&netlink, "one").await;
            crate::links::wait_until_forwarding(&netlink, "other").await;
            let mut buf = [0; 128];
            for (from, to) in [(&one, &other), (&other, &one)] {
                let sent = frame(b"hello");
                from.send(&[0; HEADER_LEN], &sent).unwrap();
                let len = to.recv(&mut buf).unwrap();
                assert_eq!(&buf[HEADER_LEN..len], sent);
                assert_eq!(to.recv_now(&mut buf).unwrap(), None);
            }
        });
    }

    #[test]
    fn without_the_driver_the_remedy_is_told() {
        testing::in_namespace(async |_, _| {
            // Mounts of this thread alone, over a file system whose devices are none.
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            crate::sandbox::cut_off_mounts().unwrap();
            crate::sandbox::mount_tmpfs(std::path::Path::new("/dev/net")).unwrap();
            let error = Tap::attach("weft-tap").unwrap_err();
            assert!(matches!(error, TapError::NoDriver(_)), "{error}");
            assert!(error.to_string().contains("modprobe tun"), "{error}");
        });
    }

    #[test]
    fn sending_into_a_device_that_is_down_is_refused() {
        testing::in_namespace(async |_, _| {
            let tap = Tap::attach("weft-tap").unwrap();
            assert!(tap.send(&[0; HEADER_LEN], &frame(b"hello")).is_err());
        });
    }

    #[test]
    fn a_device_removed_under_us_is_an_error_not_a_wait() {
        testing::in_namespace(async |netlink, _| {
            let tap = Tap::attach("weft-tap").unwrap();
            netlink.del_link("weft-tap").await.unwrap();
            assert!(tap.recv(&mut [0; 128]).is_err());
            assert!(tap.recv_now(&mut [0; 128]).is_err());
        });
    }

    #[test]
    fn a_device_removed_ends_the_wait_for_it() {
        testing::in_namespace(async |netlink, _| {
            let tap = Tap::attach("weft-tap").unwrap();
            netlink.set_up("weft-tap").await.unwrap();
            let reader = thread::spawn(move || {
                // Frames the kernel sends of its own accord come before the end.
                while tap.recv(&mut [0; 2048]).is_ok() {}
            });
            netlink.del_link("weft-tap").await.unwrap();
            reader.join().unwrap();
        });
    }
}
