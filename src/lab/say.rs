//! Where the lab's words go: results to standard output, progress to standard error. A reader who
//! went away is no error.

use std::io::{self, Write};

/// Prints a result.
///
/// # Errors
/// If standard output cannot take it for another reason than that nobody reads.
pub(crate) fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Tells what is being done, or what went wrong.
pub(crate) fn progress(text: &str) {
    // There is nowhere left to report that this failed.
    let _ = writeln!(io::stderr().lock(), "{text}");
}
