//! Writing a tar archive: as much of the format (POSIX `ustar`) as a plugin's root takes.
//!
//! Everything in it is root's, and from the beginning of time, so that the same files give the same bytes.

use std::io::Write;

use thiserror::Error;

/// What does not fit into the format.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} does not fit into an archive: its name or its content is too long")]
pub struct TooLongError(String);

/// An archive that is being written.
#[derive(Debug, Default)]
pub(crate) struct Archive(Vec<u8>);

impl Archive {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn folder(&mut self, name: &str) -> Result<(), TooLongError> {
        self.entry(name, FOLDER, 0o755, &[])
    }

    pub(crate) fn file(&mut self, name: &str, mode: u32, data: &[u8]) -> Result<(), TooLongError> {
        self.entry(name, FILE, mode, data)
    }

    /// All of it.
    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }

    fn entry(&mut self, name: &str, kind: u8, mode: u32, data: &[u8]) -> Result<(), TooLongError> {
        let head = head(name, kind, mode, data.len());
        self.0
            .extend(head.ok_or_else(|| TooLongError(name.to_owned()))?);
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        Ok(())
    }
}

/// The block before an entry's content. Its checksum is the sum of its bytes, with blanks in its own place.
fn head(name: &str, kind: u8, mode: u32, size: usize) -> Option<[u8; BLOCK]> {
    let blank = block(name, kind, mode, size, "        ")?;
    let sum: u32 = blank.iter().map(|byte| u32::from(*byte)).sum();
    block(name, kind, mode, size, &format!("{sum:06o}\0 "))
}

fn block(name: &str, kind: u8, mode: u32, size: usize, sum: &str) -> Option<[u8; BLOCK]> {
    let mut block = [0; BLOCK];
    let mut rest = block.as_mut_slice();
    field(&mut rest, 100, name)?;
    field(&mut rest, 8, &format!("{mode:07o}"))?;
    // Owner and group.
    field(&mut rest, 8, "0000000")?;
    field(&mut rest, 8, "0000000")?;
    field(&mut rest, 12, &format!("{size:011o}"))?;
    // The time.
    field(&mut rest, 12, "00000000000")?;
    field(&mut rest, 8, sum)?;
    field(&mut rest, 1, char::from(kind).encode_utf8(&mut [0; 4]))?;
    // What it is a link to.
    field(&mut rest, 100, "")?;
    field(&mut rest, 8, "ustar\x0000")?;
    Some(block)
}

/// Writes a text into the next bytes; none if it is longer.
fn field(rest: &mut &mut [u8], width: usize, text: &str) -> Option<()> {
    let padding = width.checked_sub(text.len())?;
    rest.write_all(text.as_bytes()).ok()?;
    rest.write_all([0_u8; BLOCK].get(..padding)?).ok()
}

const BLOCK: usize = 512;
const FILE: u8 = b'0';
const FOLDER: u8 = b'5';

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn tar_reads_what_is_written() {
        let mut archive = Archive::new();
        archive.folder("rootfs").unwrap();
        archive.file("rootfs/weft", 0o755, &[7; 1000]).unwrap();
        archive.file("config.json", 0o644, b"{}").unwrap();
        let mut tar = Command::new("tar");
        let tar = tar.args([
            "--list",
            "--verbose",
            "--numeric-owner",
            "--utc",
            "--file=-",
        ]);
        let mut tar = tar
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = tar.stdin.take().unwrap();
        input.write_all(&archive.end()).unwrap();
        drop(input);
        let listed = tar.wait_with_output().unwrap();
        assert!(listed.status.success());
        let listed = String::from_utf8(listed.stdout).unwrap();
        let lines: Vec<Vec<&str>> = { listed.lines() }
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines[0],
            ["drwxr-xr-x", "0/0", "0", "1970-01-01", "00:00", "rootfs"]
        );
        assert_eq!(
            lines[1],
            [
                "-rwxr-xr-x",
                "0/0",
                "1000",
                "1970-01-01",
                "00:00",
                "rootfs/weft"
            ]
        );
        assert_eq!(
            lines[2],
            [
                "-rw-r--r--",
                "0/0",
                "2",
                "1970-01-01",
                "00:00",
                "config.json"
            ]
        );
    }

    #[test]
    fn names_that_do_not_fit_are_refused() {
        let mut archive = Archive::new();
        assert!(archive.file(&"a".repeat(100), 0o644, &[]).is_ok());
        let name = "a".repeat(101);
        assert_eq!(archive.file(&name, 0o644, &[]), Err(TooLongError(name)));
    }
}
