//! Scripts for `nft`, each of which the kernel carries out whole or not at all.

use std::io::{self, Write as _};
use std::process::{Command, ExitStatus, Output, Stdio};

use thiserror::Error;
use tokio::task::spawn_blocking;

/// Why a script was not carried out; then everything is as it was.
#[derive(Debug, Error)]
pub(crate) enum NftError {
    /// There is no such tool.
    #[error("there is no `nft` on this host")]
    NoTool,
    /// It cannot be run.
    #[error("cannot run `nft`: {0}")]
    Run(#[source] io::Error),
    /// It or the kernel refused.
    #[error("`nft` ended with {status}: {said}")]
    Refused {
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        said: String,
    },
}

/// Has a script carried out, beside the caller's thread.
pub(crate) async fn apply(script: String) -> Result<(), NftError> {
    call(&["-f", "-"], script).await.map(drop)
}

/// Asks by these words, and gives back what is printed.
pub(crate) async fn ask(words: &'static [&'static str]) -> Result<Vec<u8>, NftError> {
    call(words, String::new()).await
}

async fn call(words: &'static [&'static str], input: String) -> Result<Vec<u8>, NftError> {
    let ran = spawn_blocking(move || run(words, &input)).await;
    let output = ran.map_err(io::Error::other).flatten();
    match output {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(NftError::NoTool),
        Err(error) => Err(NftError::Run(error)),
        Ok(output) if output.status.success() => Ok(output.stdout),
        Ok(output) => Err(NftError::Refused {
            status: output.status,
            said: first_line(&output.stderr),
        }),
    }
}

fn run(words: &[&str], input: &str) -> io::Result<Output> {
    let start = |tool: &str| {
        Command::new(tool)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    };
    // An ordinary user's path, which `su` keeps, leaves the second place out.
    let mut child = start("nft").or_else(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            start("/usr/sbin/nft")
        } else {
            Err(error)
        }
    })?;
    if let Some(mut stdin) = child.stdin.take() {
        // If it ends without reading all, its status says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output()
}

fn first_line(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    text.lines()
        .next()
        .unwrap_or("nothing said")
        .trim()
        .to_owned()
}
