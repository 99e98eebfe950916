//! Many datagrams in one system call, in and out.
//!
//! What a datagram costs in the kernel is mostly the way through it, and datagrams of one length to or
//! from one address can go it together: the kernel (or the network card) cuts the train on its way out and
//! couples it on its way in. Trains are contiguous, so nothing is copied but by the kernel.
//!
//! Invariant: where the kernel cannot do it, the same datagrams go and come one by one.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::libc;
use socket2::{SockAddr, SockAddrStorage};

use crate::udp::{canonical, is_too_long, send_now};

/// The most datagrams the kernel takes in one train, by its `UDP_MAX_SEGMENTS` of old.
pub const MAX_TRAIN: usize = 64;
/// The most bytes of a train: what fits into the length of one IP packet, headers off.
pub const MAX_TRAIN_BYTES: usize = 65_000;

/// What became of a train.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// Datagrams the kernel took.
    pub datagrams: usize,
    /// Whether they had to be sent one by one.
    pub singly: bool,
    /// Datagrams that are too long for a link of this host.
    pub too_long: usize,
}

/// Sends the datagrams that stand one after another in `train`, each `size` bytes long but for the last, which
/// may be shorter. Never waits: what there is no room for is not sent.
///
/// If the kernel refuses the train as such (a datagram is too long for a link, a link without checksums),
/// they are sent one by one.
pub fn send_train(socket: &UdpSocket, train: &[u8], size: usize, to: SocketAddr) -> Sent {
    let count = train.len().div_ceil(size.max(1));
    if count > 1
        && let Ok(size) = u16::try_from(size)
    {
        match send_together(socket, train, size, to) {
            Ok(()) => {
                return Sent {
                    datagrams: count,
                    ..Sent::default()
                };
            }
            Err(error) if no_room(&error) => return Sent::default(),
            Err(_) => {}
        }
    }
    let mut sent = Sent {
        singly: count > 1,
        ..Sent::default()
    };
    for datagram in train.chunks(size.max(1)) {
        match send_now(socket, datagram, to) {
            Ok(_) => sent.datagrams += 1,
            Err(error) if is_too_long(&error) => sent.too_long += 1,
            Err(_) => {}
        }
    }
    sent
}

/// What was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes of all datagrams together.
    pub len: usize,
    /// Length of each but the last, which may be shorter.
    pub size: usize,
    /// Who sent them.
    pub from: SocketAddr,
}

/// Receives datagrams of one sender to the front of `buf`, one after another. Answers `None` if none is
/// there: at once, or if `wait` says so, when the socket's time to wait is over.
///
/// # Errors
/// What the kernel said, be it of an earlier datagram that did not reach its goal.
pub fn recv_train(socket: &UdpSocket, buf: &mut [u8], wait: bool) -> io::Result<Option<Received>> {
    let mut control = Control::default();
    let mut part = libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    };
    let mut sender = SockAddrStorage::zeroed();
    // SAFETY: all zeroes are a message without anything.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_name = (&raw mut sender).cast();
    message.msg_namelen = sender.size_of();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>() as _;
    let flags = if wait { 0 } else { libc::MSG_DONTWAIT };
    // SAFETY: the descriptor is open, and all that the message points to outlives the call, with the
    // lengths that are said.
    let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    let Ok(len) = usize::try_from(len) else {
        let error = io::Error::last_os_error();
        let nothing_there = [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted];
        return if nothing_there.contains(&error.kind()) {
            Ok(None)
        } else {
            Err(error)
        };
    };
    // SAFETY: the kernel has written an address of this length.
    let from = unsafe { SockAddr::new(sender, message.msg_namelen) };
    let from = from.as_socket().ok_or(io::ErrorKind::InvalidData)?;
    Ok(Some(Received {
        len,
        size: train_size(&message).filter(|size| *size > 0).unwrap_or(len),
        from: canonical(from),
    }))
}

/// How long each datagram of a received train is; `None` for a single one.
fn train_size(message: &libc::msghdr) -> Option<usize> {
    // SAFETY: the message is one the kernel has filled in, its control buffer still there; the library's
    // functions stay inside of it.
    unsafe {
        let mut entry = libc::CMSG_FIRSTHDR(message);
        while let Some(header) = entry.as_ref() {
            if header.cmsg_level == libc::SOL_UDP && header.cmsg_type == libc::UDP_GRO {
                let size: libc::c_int = libc::CMSG_DATA(entry)
                    .cast::<libc::c_int>()
                    .read_unaligned();
                return usize::try_from(size).ok();
            }
            entry = libc::CMSG_NXTHDR(message, entry);
        }
    }
    None
}

fn send_together(socket: &UdpSocket, train: &[u8], size: u16, to: SocketAddr) -> io::Result<()> {
    let to = SockAddr::from(to);
    let mut control = Control::default();
    let mut part = libc::iovec {
        iov_base: train.as_ptr().cast_mut().cast(),
        iov_len: train.len(),
    };
    // SAFETY: all zeroes are a message without anything.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_name = to.as_ptr().cast_mut().cast();
    message.msg_namelen = to.len();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    // SAFETY: these only compute; the control buffer is aligned as its header and has room for this one
    // entry.
    unsafe {
        message.msg_controllen = libc::CMSG_SPACE(size_of::<u16>() as u32) as _;
        if let Some(entry) = libc::CMSG_FIRSTHDR(&raw const message).as_mut() {
            entry.cmsg_level = libc::SOL_UDP;
            entry.cmsg_type = libc::UDP_SEGMENT;
            entry.cmsg_len = libc::CMSG_LEN(size_of::<u16>() as u32) as _;
            libc::CMSG_DATA(entry).cast::<u16>().write_unaligned(size);
        }
    }
    // SAFETY: the descriptor is open, and all that the message points to outlives the call, which only
    // reads it.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether there is only no room now; one by one there will be none either.
fn no_room(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}

/// Room for what the kernel says or is told beside the bytes, aligned as it must be.
type Control = [u64; 8];

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;
    use std::time::Duration;

    use super::*;
    use crate::testing;
    use crate::udp::bind_udp;

    fn pair(any: &str) -> (UdpSocket, UdpSocket, SocketAddr) {
        let [one, other] = [any, any].map(|any| bind_udp(any.parse().unwrap()).unwrap());
        other
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let to = other.local_addr().unwrap();
        (one, other, to)
    }

    fn receive(socket: &UdpSocket, count: usize) -> Vec<Vec<u8>> {
        let mut buf = vec![0; 65_536];
        let mut datagrams = Vec::new();
        while datagrams.len() < count {
            let train = recv_train(socket, &mut buf, true).unwrap().unwrap();
            datagrams.extend(buf[..train.len].chunks(train.size).map(<[u8]>::to_vec));
        }
        assert_eq!(recv_train(socket, &mut buf, false).unwrap(), None);
        datagrams
    }

    #[test]
    fn a_train_arrives_as_the_datagrams_it_is_made_of() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let (one, other, to) = pair(any);
            for (count, size, last) in [
                (1, 900, 0),
                (2, 1400, 1),
                (40, 1439, 1439),
                (MAX_TRAIN, 90, 7),
            ] {
                let mut train: Vec<u8> = (0..count * size).map(|n| (n / 3) as u8).collect();
                train.extend(vec![9; last]);
                train.truncate(MAX_TRAIN * size);
                let expected: Vec<_> = train.chunks(size).map(<[u8]>::to_vec).collect();
                let sent = send_train(&one, &train, size, to);
                assert_eq!(
                    sent,
                    Sent {
                        datagrams: expected.len(),
                        ..Sent::default()
                    }
                );
                assert_eq!(receive(&other, expected.len()), expected);
            }
        }
    }

    #[test]
    fn of_a_train_that_is_too_long_goes_what_fits_and_the_rest_is_told() {
        testing::in_namespace(async |netlink, _| {
            netlink.set_mtu("lo", 1280).await.unwrap();
            let (one, other, to) = pair("127.0.0.1:0");
            let train: Vec<u8> = (0..9 * 1439 + 700).map(|n| (n / 7) as u8).collect();
            let sent = send_train(&one, &train, 1439, to);
            assert_eq!(
                sent,
                Sent {
                    datagrams: 1,
                    singly: true,
                    too_long: 9
                }
            );
            assert_eq!(receive(&other, 1), [&train[9 * 1439..]]);
        });
    }

    #[test]
    fn the_sender_is_told_in_its_own_family() {
        testing::in_namespace(async |_, _| {
            let any = bind_udp(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))).unwrap();
            any.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let port = any.local_addr().unwrap().port();
            let one = bind_udp("127.0.0.1:0".parse().unwrap()).unwrap();
            let sent = send_train(&one, &[7; 500], 100, ([127, 0, 0, 1], port).into());
            assert_eq!(sent.datagrams, 5);
            let train = recv_train(&any, &mut [0; 1000], true).unwrap().unwrap();
            assert_eq!(train.from, one.local_addr().unwrap());
            // And back, to an IPv4 address on a socket for both families.
            one.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            assert_eq!(send_train(&any, &[8; 500], 100, train.from).datagrams, 5);
            assert_eq!(receive(&one, 5), vec![vec![8; 100]; 5]);
        });
    }

    #[test]
    fn an_empty_datagram_is_one() {
        let (one, other, to) = pair("127.0.0.1:0");
        send_now(&one, &[], to).unwrap();
        let train = recv_train(&other, &mut [0; 10], true).unwrap().unwrap();
        assert_eq!((train.len, train.size), (0, 0));
    }
}
