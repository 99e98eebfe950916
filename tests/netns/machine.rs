//! A machine on the network that is none of the kernel's: frames go out of a container and come back exactly as
//! they are, tags and super-frames and all, through a TAP of the test's own that is bridged to the container's
//! interface. (A packet socket does not show the outer tag of a frame in the frame.)
//!
//! One machine sends back whatever another sends to it; the other compares. What it sends is different every
//! time, of every kind in turn, told by a seed. A super-frame may come back as one or as the frames it
//! stands for, so both are cut before they are compared. Anything changed, doubled or out of order is an error;
//! what is lost is one too unless the test itself cuts the way.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use std::{io, thread};

use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use weft_net::Netlink;
use weft_net::tap::{HEADER_LEN, Tap};
use weft_router::offload::{Cut, VnetHeader};

use super::frames::{self, Sent};
use super::helper::{report, told_to_end};

/// A test's own device and bridge in the container.
const DEVICE: &str = "machine";
const BRIDGE: &str = "between";
/// Frames and super-frames that are under way together.
const BATCH: usize = 12;
/// How long frames may be under way.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a second copy of a frame would be under way at the most.
const QUIET: Duration = Duration::from_millis(300);

/// Sends each frame for it back to where it came from, until standard input ends.
pub(super) fn echo() {
    let machine = Machine::attach();
    let end = told_to_end();
    report("ready");
    while !end.load(std::sync::atomic::Ordering::Relaxed) {
        match machine.next(Duration::from_millis(50)) {
            Some((header, mut frame)) if frame[..12] == addresses(ECHO, CALLER) => {
                frame[..12].copy_from_slice(&addresses(CALLER, ECHO));
                machine.tap.send(&header, &frame).unwrap();
            }
            Some(_) | None => {}
        }
    }
}

/// Sends `count` frames and super-frames to the machine that sends back, no frame longer than `mtu` allows, and
/// reports how many frames came back as they were. If `lossy`, some may be missing.
pub(super) fn call(count: &str, mtu: &str, lossy: bool) {
    let (count, mtu): (usize, usize) = (count.parse().unwrap(), mtu.parse().unwrap());
    let machine = Machine::attach();
    report("ready");
    machine.says_hello();
    let mut rng = ChaCha20Rng::seed_from_u64(count as u64);
    let (mut frames, mut lost, mut left) = (0, 0, count);
    while left > 0 {
        let batch = left.min(BATCH);
        let sent: Vec<Sent> = (0..batch)
            .map(|nth| frames::random(left - nth, mtu, &mut rng))
            .collect();
        left -= batch;
        let mut expected: VecDeque<_> = sent
            .iter()
            .flat_map(|sent| pieces(sent.header.emit(), &sent.frame))
            .collect();
        frames += expected.len();
        for sent in &sent {
            let mut frame = sent.frame.clone();
            frame[..12].copy_from_slice(&addresses(ECHO, CALLER));
            machine.tap.send(&sent.header.emit(), &frame).unwrap();
        }
        lost += machine.gets_back(&mut expected, lossy);
    }
    let late = machine.next_back(QUIET).map(|frame| frame.len());
    assert_eq!(late, None, "a frame came a second time");
    assert!(lossy || lost == 0, "{lost} frames lost");
    report(&format!("{} of {frames} frames came back", frames - lost));
}

/// A TAP on a bridge with the container's interface.
struct Machine {
    tap: Arc<Tap>,
    frames: Receiver<([u8; HEADER_LEN], Vec<u8>)>,
}

impl Machine {
    fn attach() -> Self {
        let tap = Arc::new(Tap::attach(DEVICE).unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        runtime.block_on(async {
            let netlink = Netlink::new().unwrap();
            netlink.add_bridge(BRIDGE).await.unwrap();
            for link in [BRIDGE, DEVICE] {
                netlink.set_no_own_addresses(link).await.unwrap();
            }
            for link in ["ethwe", DEVICE] {
                netlink.set_master(link, BRIDGE).await.unwrap();
            }
            for link in [BRIDGE, DEVICE] {
                netlink.set_up(link).await.unwrap();
            }
        });
        let (sender, frames) = mpsc::sync_channel(1024);
        let reader = Arc::clone(&tap);
        thread::spawn(move || read(&reader, &sender));
        Self { tap, frames }
    }

    /// The next frame or super-frame off the network.
    fn next(&self, within: Duration) -> Option<([u8; HEADER_LEN], Vec<u8>)> {
        match self.frames.recv_timeout(within) {
            Ok(frame) => Some(frame),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("the device is gone"),
        }
    }

    /// The next that was sent back to us, whole or super.
    fn next_back(&self, within: Duration) -> Option<Vec<Vec<u8>>> {
        let begin = Instant::now();
        while begin.elapsed() < within {
            if let Some((header, frame)) = self.next(within.saturating_sub(begin.elapsed()))
                && frame[..12] == addresses(CALLER, ECHO)
            {
                return Some(pieces(header, &frame));
            }
        }
        None
    }

    /// Goes on until the machine that sends back is there; bridges take a moment.
    fn says_hello(&self) {
        let begin = Instant::now();
        let mut frame = addresses(ECHO, CALLER).to_vec();
        frame.extend([0x88, 0xb5]);
        frame.resize(60, 0);
        loop {
            self.tap.send(&[0; HEADER_LEN], &frame).unwrap();
            if self.next_back(QUIET).is_some() {
                break;
            }
            assert!(begin.elapsed() < PATIENCE, "nobody sends anything back");
        }
        // What else was said before it was there.
        while self.next_back(QUIET).is_some() {}
    }

    /// Takes what comes back and compares; answers how many are missing.
    fn gets_back(&self, expected: &mut VecDeque<Vec<u8>>, lossy: bool) -> usize {
        let mut lost = 0;
        let patience = if lossy { QUIET } else { PATIENCE };
        while !expected.is_empty() {
            let Some(frames) = self.next_back(patience) else {
                assert!(lossy, "{} frames did not come back", expected.len());
                return lost + expected.len();
            };
            for came in frames {
                let at = expected.iter().position(|frame| same(frame, &came));
                let at = at.unwrap_or_else(|| panic!("changed, or a second time: {came:02x?}"));
                assert!(at == 0 || lossy, "frames were lost or reordered");
                expected.drain(..=at);
                lost += at;
            }
        }
        lost
    }
}

fn read(tap: &Tap, frames: &mpsc::SyncSender<([u8; HEADER_LEN], Vec<u8>)>) -> io::Result<()> {
    let mut buffer = vec![0; HEADER_LEN + (1 << 16)];
    loop {
        let len = tap.recv(&mut buffer)?;
        if let Some((header, frame)) = buffer[..len].split_first_chunk()
            && frames.send((*header, frame.to_vec())).is_err()
        {
            return Ok(());
        }
    }
}

/// The frames a super-frame stands for; any other frame is one.
fn pieces(header: [u8; HEADER_LEN], frame: &[u8]) -> Vec<Vec<u8>> {
    let mut cut = Cut::new(VnetHeader::parse(&header), frame).unwrap();
    let mut frames = Vec::new();
    while let Some(len) = cut.next_len() {
        let mut frame = vec![0; len];
        cut.write_next(&mut frame);
        frames.push(frame);
    }
    frames
}

/// Whether two frames are the same but for the addresses of Ethernet.
fn same(one: &[u8], other: &[u8]) -> bool {
    one[12..] == other[12..]
}

type Mac = [u8; 6];
const CALLER: Mac = [2, 0, 0, 0, 0xca, 1];
const ECHO: Mac = [2, 0, 0, 0, 0xca, 2];

fn addresses(to: Mac, from: Mac) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..6].copy_from_slice(&to);
    bytes[6..].copy_from_slice(&from);
    bytes
}
