//! Waiting for whichever of several TAPs has a frame first.
//!
//! For the networks beside the default one: one thread serves them all. Who else may change which they
//! are ends the wait with a [`Waker`].
//!
//! Invariant: a wake is never lost and never waits; several before the wait ends count as one.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::tap::Tap;

/// Ends a wait from another thread.
#[derive(Debug)]
pub struct Waker {
    near: UnixStream,
    far: UnixStream,
}

impl Waker {
    /// One that nobody has used.
    ///
    /// # Errors
    /// If there are no descriptors left.
    pub fn new() -> io::Result<Self> {
        let (near, far) = UnixStream::pair()?;
        near.set_nonblocking(true)?;
        far.set_nonblocking(true)?;
        Ok(Self { near, far })
    }

    /// Ends the wait, or the next one if nobody waits.
    pub fn wake(&self) {
        // No room left means that enough wakes are there already.
        let _ = (&self.near).write(&[0]);
    }

    fn clear(&self) {
        let mut buffer = [0; 64];
        while (&self.far).read(&mut buffer).is_ok_and(|len| len > 0) {}
    }
}

/// TAPs to wait for.
#[derive(Debug)]
pub struct Taps<'a> {
    waker: &'a Waker,
    /// The waker, then the TAPs.
    polled: Vec<PollFd<'a>>,
}

impl<'a> Taps<'a> {
    /// These, until somebody wakes us.
    pub fn new(taps: impl Iterator<Item = &'a Tap>, waker: &'a Waker) -> Self {
        let taps = taps.map(AsFd::as_fd);
        let polled = [waker.far.as_fd()].into_iter().chain(taps);
        let polled = polled.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        Self {
            waker,
            polled: polled.collect(),
        }
    }

    /// Waits until one has a frame, or is gone; answers whether somebody woke us.
    pub fn wait(&mut self) -> bool {
        // Interrupted is as good as nothing there.
        let _ = poll(&mut self.polled, PollTimeout::NONE);
        let woken = self.polled.first().is_some_and(is_ready);
        if woken {
            self.waker.clear();
        }
        woken
    }

    /// Of each TAP, in order, whether reading it is worth while.
    pub fn ready(&self) -> impl Iterator<Item = bool> {
        self.polled.iter().skip(1).map(is_ready)
    }
}

fn is_ready(polled: &PollFd<'_>) -> bool {
    polled.any().unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::{BridgeConfig, enslave_tap, ensure_bridge};
    use crate::links::wait_until_forwarding;
    use crate::tap::HEADER_LEN;
    use crate::testing;
    use weft_wire::MacAddr;

    #[test]
    fn a_wake_ends_the_wait_once() {
        let waker = Waker::new().unwrap();
        waker.wake();
        waker.wake();
        let mut taps = Taps::new([].into_iter(), &waker);
        assert!(taps.wait());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(move || taps.wait());
            waker.wake();
            assert!(waiting.join().unwrap());
        });
    }

    #[test]
    fn only_the_tap_with_a_frame_is_ready_and_one_that_is_gone_says_so() {
        testing::in_namespace(async |netlink, _| {
            let config = BridgeConfig {
                name: "weft".to_owned(),
                mac: MacAddr::from_bytes([0x7a, 0, 0, 0, 0, 9]),
                mtu: 1376,
            };
            ensure_bridge(&netlink, &config).await.unwrap();
            let [quiet, port, container] =
                ["quiet", "weft-tap", "container"].map(|name| Tap::attach(name).unwrap());
            enslave_tap(&netlink, "weft-tap", "weft").await.unwrap();
            netlink.set_no_own_addresses("container").await.unwrap();
            netlink.set_master("container", "weft").await.unwrap();
            netlink.set_up("container").await.unwrap();
            wait_until_forwarding(&netlink, "container").await;
            wait_until_forwarding(&netlink, "weft-tap").await;
            let frame = [[0xff; 6], [2, 0, 0, 0, 0, 1]].concat();
            let frame = [frame, vec![0x88, 0xb5], vec![0; 46]].concat();
            container.send(&[0; HEADER_LEN], &frame).unwrap();
            let waker = Waker::new().unwrap();
            let mut taps = Taps::new([&quiet, &port].into_iter(), &waker);
            assert!(!taps.wait());
            assert_eq!(taps.ready().collect::<Vec<_>>(), [false, true]);

            let mut buffer = [0; 2048];
            while port.recv_now(&mut buffer).unwrap().is_some() {}
            netlink.del_link("quiet").await.unwrap();
            assert!(!taps.wait());
            assert_eq!(taps.ready().collect::<Vec<_>>(), [true, false]);
            assert!(quiet.recv_now(&mut buffer).is_err());
        });
    }
}
