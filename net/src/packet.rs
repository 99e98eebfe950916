//! Whole frames past the kernel's network layers: sent out of one link, or taken as they come up
//! through one.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc;
use nix::sys::socket::{MsgFlags, recv};
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};
use tokio::io::unix::AsyncFd;

/// Sends frames out of links of the network namespace it was made in.
#[derive(Debug)]
pub struct PacketSender(Socket);

impl PacketSender {
    /// A socket that sends frames and receives none.
    ///
    /// # Errors
    /// If packet sockets are not allowed here.
    pub fn new() -> io::Result<Self> {
        // Protocol 0: nothing is received.
        let socket = Socket::new(Domain::PACKET, Type::RAW.cloexec().nonblocking(), None)?;
        Ok(Self(socket))
    }

    /// Sends a frame out of a link. The receiver's MAC is in the frame.
    ///
    /// # Errors
    /// If there is no such link, it is down, or the frame is too long for it.
    pub fn send(&self, index: u32, frame: &[u8]) -> io::Result<()> {
        self.0.send_to(frame, &link_address(index, 0)?)?;
        Ok(())
    }
}

/// Takes copies of all frames of one ethertype that come up through one link.
#[derive(Debug)]
pub struct PacketReceiver(AsyncFd<OwnedFd>);

impl PacketReceiver {
    /// Begins to take frames. To be called on a tokio runtime.
    ///
    /// # Errors
    /// If packet sockets are not allowed here, or there is no such link.
    pub fn open(index: u32, ethertype: u16) -> io::Result<Self> {
        let PacketSender(socket) = PacketSender::new()?;
        // What waits for a reader that is late need not be much.
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        socket.bind(&link_address(index, ethertype)?)?;
        // SAFETY: an owned descriptor is open, and the same one, until it is dropped.
        let registered = unsafe { AsyncFd::register(OwnedFd::from(socket)) };
        Ok(Self(registered?))
    }

    /// Waits for the next frame, of which the buffer takes as much as it holds; says how much.
    ///
    /// # Errors
    /// If the link is gone.
    pub async fn next(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            let taken = ready.try_io(|socket| {
                Ok(recv(
                    socket.get_ref().as_raw_fd(),
                    buf,
                    MsgFlags::MSG_DONTWAIT,
                )?)
            });
            if let Ok(taken) = taken {
                return taken;
            }
        }
    }
}

/// The address of a link for a packet socket. The receiver's MAC is in the frame.
pub(crate) fn link_address(index: u32, ethertype: u16) -> io::Result<SockAddr> {
    let index = i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is the kind of address that AF_PACKET says it is.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = libc::AF_PACKET as libc::sa_family_t;
    link.sll_ifindex = index;
    link.sll_protocol = ethertype.to_be();
    let len = mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: that many bytes of the storage were initialised, to zero at least.
    Ok(unsafe { SockAddr::new(storage, len) })
}

/// Room for some dozens of frames.
const RECEIVE_BUFFER: usize = 128 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn frames_of_the_ethertype_come_through_and_others_do_not() {
        testing::in_namespace(async |netlink, _| {
            netlink.add_veth("a", "b").await.unwrap();
            netlink.set_up("a").await.unwrap();
            netlink.set_up("b").await.unwrap();
            let (a, b) = (
                netlink.link_index("a").await.unwrap(),
                netlink.link_index("b").await.unwrap(),
            );
            let receiver = PacketReceiver::open(b, 0x88b5).unwrap();
            let sender = PacketSender::new().unwrap();
            let mut frame = [0xff; 100];
            for ethertype in [0x88b6_u16, 0x88b5] {
                frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
                sender.send(a, &frame).unwrap();
            }
            let mut buf = [0; 200];
            let len = receiver.next(&mut buf).await.unwrap();
            assert_eq!(buf[..len], frame);
        });
    }

    #[test]
    fn a_link_that_is_not_there_is_an_error() {
        testing::in_namespace(async |_, _| {
            let sender = PacketSender::new().unwrap();
            assert!(sender.send(4711, &[0; 60]).is_err());
            assert!(sender.send(u32::MAX, &[0; 60]).is_err());
            assert!(PacketReceiver::open(4711, 0x88b5).is_err());
        });
    }
}
