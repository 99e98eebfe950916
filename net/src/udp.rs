//! The socket sealed frames travel by.
//!
//! One socket for IPv4 and IPv6, where the kernel has both. Invariant: addresses are told in their
//! own family, never as IPv6 addresses that mean IPv4 ones ([`canonical`]), because they are compared
//! with what peers and operators say.
#![allow(unsafe_code)]

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

/// Binds a UDP socket with room for bursts, whose datagrams are never fragmented: what is too long for a link
/// of this host is refused ([`is_too_long`]), what is too long further on is lost. Word of that by ICMP,
/// which anybody can forge, changes nothing. The unspecified address of either family means both families.
///
/// # Errors
/// `AddrInUse` if the port is taken, or what binding said.
pub fn bind_udp(addr: SocketAddr) -> io::Result<UdpSocket> {
    if !addr.ip().is_unspecified() {
        return bind(addr);
    }
    let both = SocketAddr::from((Ipv6Addr::UNSPECIFIED, addr.port()));
    bind(both).or_else(|error| match error.raw_os_error() {
        // No IPv6 in this kernel, or switched off.
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL) => {
            bind(SocketAddr::from(([0, 0, 0, 0], addr.port())))
        }
        Some(_) | None => Err(error),
    })
}

fn bind(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM.cloexec(), None)?;
    if addr.is_ipv6() {
        socket.set_only_v6(!addr.ip().is_unspecified())?;
        set_option(
            socket.as_fd(),
            libc::SOL_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_PROBE,
        )?;
    }
    // On an IPv6 socket this is for the IPv4 datagrams it sends.
    set_option(
        socket.as_fd(),
        libc::SOL_IP,
        libc::IP_MTU_DISCOVER,
        libc::IP_PMTUDISC_PROBE,
    )?;
    // Without the right to force it, the system's limit is what we get.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVES).is_err() {
        socket.set_recv_buffer_size(RECEIVES)?;
    }
    if setsockopt(&socket, sockopt::SndBufForce, &SENDS).is_err() {
        socket.set_send_buffer_size(SENDS)?;
    }
    // Several datagrams in one call, where the kernel can (since Linux 5.0); without, each comes alone.
    let _ = set_option(socket.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1);
    socket.bind(&SockAddr::from(addr))?;
    Ok(socket.into())
}

/// Sends a datagram, or fails with `WouldBlock` instead of waiting for room. The address may be of
/// either family if the socket is for both.
///
/// # Errors
/// What the kernel said.
pub fn send_now(socket: &UdpSocket, datagram: &[u8], to: SocketAddr) -> io::Result<usize> {
    // The kernel takes an IPv4 address on a socket for both families as it is.
    SockRef::from(socket).send_to_with_flags(datagram, &SockAddr::from(to), libc::MSG_DONTWAIT)
}

/// Whether the kernel has refused a datagram because a link of this host does not carry its length.
pub fn is_too_long(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EMSGSIZE)
}

/// An address in its own family: what a socket for both families tells of an IPv4 peer is an IPv6
/// address with the IPv4 one in it.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::from((ip, addr.port())),
        // With its scope, which a link-local address needs.
        IpAddr::V6(_) => addr,
    }
}

fn set_option(socket: BorrowedFd<'_>, level: i32, option: i32, value: i32) -> io::Result<()> {
    let len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the descriptor is open, and pointer and length are those of an integer that outlives
    // the call, which only reads it.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            len,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Some 10 ms at 6.4 Gbit/s: as long as a busy machine may keep the receiving thread waiting. It holds what four TCP
/// streams, whose windows end at 3 MB by Linux's defaults, have on the way; with half of it they lose some.
const RECEIVES: usize = 8 << 20;
/// What a link that is busy may keep waiting; what is sent waits nowhere else.
const SENDS: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_unspecified_address_is_for_both_families() {
        testing::in_namespace(async |_, _| {
            for any in ["0.0.0.0:0", "[::]:0"] {
                let socket = bind_udp(addr(any)).unwrap();
                socket
                    .set_read_timeout(Some(Duration::from_secs(5)))
                    .unwrap();
                let port = socket.local_addr().unwrap().port();
                for (from, to) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")] {
                    let other = bind_udp(addr(from)).unwrap();
                    other
                        .set_read_timeout(Some(Duration::from_secs(5)))
                        .unwrap();
                    let to = SocketAddr::new(to.parse().unwrap(), port);
                    send_now(&other, b"there", to).unwrap();
                    let mut buf = [0; 16];
                    let (len, back) = socket.recv_from(&mut buf).unwrap();
                    assert_eq!(&buf[..len], b"there");
                    assert_eq!(canonical(back), other.local_addr().unwrap());
                    send_now(&socket, b"back", canonical(back)).unwrap();
                    assert_eq!(other.recv_from(&mut buf).unwrap(), (4, to));
                }
            }
        });
    }

    #[test]
    fn a_port_in_use_is_refused_in_either_family() {
        testing::in_namespace(async |_, _| {
            let socket = bind_udp(addr("0.0.0.0:0")).unwrap();
            let port = socket.local_addr().unwrap().port();
            for taken in ["0.0.0.0", "127.0.0.1", "::1"] {
                let error = bind_udp(SocketAddr::new(taken.parse().unwrap(), port)).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{taken}");
            }
        });
    }

    #[test]
    fn without_ipv6_there_is_ipv4() {
        testing::in_namespace(async |_, _| {
            std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
            let socket = bind_udp(addr("0.0.0.0:0")).unwrap();
            let port = socket.local_addr().unwrap().port();
            send_now(&socket, b"self", SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
            let mut buf = [0; 16];
            let (_, from) = socket.recv_from(&mut buf).unwrap();
            assert_eq!(canonical(from), SocketAddr::from(([127, 0, 0, 1], port)));
        });
    }

    #[test]
    fn datagrams_longer_than_the_link_carries_are_refused() {
        testing::in_namespace(async |netlink, _| {
            netlink.set_mtu("lo", 1400).await.unwrap();
            for (any, to) in [("0.0.0.0:0", "127.0.0.1"), ("[::]:0", "::1")] {
                let socket = bind_udp(addr(any)).unwrap();
                let to = SocketAddr::new(to.parse().unwrap(), socket.local_addr().unwrap().port());
                let headers = if to.is_ipv4() { 28 } else { 48 };
                let error = send_now(&socket, &vec![7; 1401 - headers], to).unwrap_err();
                assert!(is_too_long(&error), "{error}");
                let longest = vec![7; 1400 - headers];
                assert_eq!(send_now(&socket, &longest, to).unwrap(), longest.len());
            }
        });
    }

    #[test]
    fn routers_on_the_way_may_not_fragment_either() {
        for (any, level, option) in [
            ("127.0.0.1:0", libc::SOL_IP, libc::IP_MTU_DISCOVER),
            ("[::]:0", libc::SOL_IP, libc::IP_MTU_DISCOVER),
            ("[::]:0", libc::SOL_IPV6, libc::IPV6_MTU_DISCOVER),
        ] {
            let socket = bind_udp(addr(any)).unwrap();
            let mut value = -1_i32;
            let mut len = size_of_val(&value) as libc::socklen_t;
            // SAFETY: the descriptor is open, and the pointers are to integers that outlive the call.
            let done = unsafe {
                libc::getsockopt(
                    socket.as_raw_fd(),
                    level,
                    option,
                    (&raw mut value).cast(),
                    &raw mut len,
                )
            };
            assert_eq!((done, value), (0, libc::IP_PMTUDISC_PROBE), "{any}");
        }
    }

    #[test]
    fn buffers_hold_a_burst() {
        if !testing::privileged() {
            return;
        }
        let socket = bind_udp(addr("127.0.0.1:0")).unwrap();
        // The kernel doubles what is asked for, for its own needs.
        assert_eq!(
            SockRef::from(&socket).recv_buffer_size().unwrap(),
            2 * RECEIVES
        );
        assert_eq!(
            SockRef::from(&socket).send_buffer_size().unwrap(),
            2 * SENDS
        );
    }

    #[test]
    fn addresses_are_told_in_their_own_family() {
        assert_eq!(
            canonical(addr("[::ffff:192.0.2.1]:6783")),
            addr("192.0.2.1:6783")
        );
        assert_eq!(
            canonical(addr("[2001:db8::1]:6783")),
            addr("[2001:db8::1]:6783")
        );
        assert_eq!(
            canonical(addr("[fe80::1%3]:6783")),
            addr("[fe80::1%3]:6783")
        );
    }
}
