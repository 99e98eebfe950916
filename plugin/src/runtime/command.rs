//! The few things of runc's command line that matter here: whether it creates a container, from which
//! bundle, and where runc logs.
//!
//! Invariant: arguments are only read. What is not understood is runc's to refuse.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A call of runc.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct RuncCommand {
    name: Option<String>,
    bundle: Option<PathBuf>,
    log: Option<PathBuf>,
}

impl RuncCommand {
    pub(super) fn parse(arguments: &[OsString]) -> Self {
        let mut call = Self::default();
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let Some((flag, value)) = flag(argument) else {
                if call.name.is_some() {
                    // The container's id.
                    break;
                }
                call.name = argument.to_str().map(str::to_owned);
                if !call.creates() {
                    break;
                }
                continue;
            };
            let takes = if call.name.is_none() {
                &GLOBAL[..]
            } else {
                &CREATE[..]
            };
            if !takes.contains(&flag.as_str()) {
                continue;
            }
            let value = value.or_else(|| rest.next().map(PathBuf::from));
            match flag.as_str() {
                "log" => call.log = value,
                "bundle" | "b" => call.bundle = value,
                _ => {}
            }
        }
        call
    }

    /// The bundle a container is created from; none if none is created.
    pub(super) fn creates_from(&self) -> Option<&Path> {
        let bundle = self.bundle.as_deref().unwrap_or(Path::new("."));
        self.creates().then_some(bundle)
    }

    /// The file runc logs to.
    pub(super) fn log(&self) -> Option<&Path> {
        self.log.as_deref()
    }

    fn creates(&self) -> bool {
        matches!(self.name.as_deref(), Some("create" | "run"))
    }
}

/// A flag's name, and its value if that is in the same argument. One dash is as good as two to runc.
fn flag(argument: &OsString) -> Option<(String, Option<PathBuf>)> {
    let bytes = argument.as_bytes().strip_prefix(b"-")?;
    let bytes = bytes.strip_prefix(b"-").unwrap_or(bytes);
    let mut parts = bytes.splitn(2, |byte| *byte == b'=');
    let name = String::from_utf8_lossy(parts.next()?).into_owned();
    let value = parts
        .next()
        .map(|v| PathBuf::from(std::ffi::OsStr::from_bytes(v)));
    Some((name, value))
}

/// Flags before the command that are followed by a value.
const GLOBAL: [&str; 5] = ["log", "log-format", "root", "criu", "rootless"];
/// Those of `create` and `run`.
const CREATE: [&str; 5] = ["bundle", "b", "console-socket", "pid-file", "preserve-fds"];

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> RuncCommand {
        let words: Vec<_> = text.split_whitespace().map(OsString::from).collect();
        RuncCommand::parse(&words)
    }

    #[test]
    fn what_containerd_calls_is_understood() {
        let call = parse(
            "--root /var/run/docker/runtime-runc/moby --log /b/log.json --log-format json \
             --systemd-cgroup create --bundle /b --pid-file /b/init.pid --console-socket /c ff70",
        );
        assert_eq!(call.creates_from(), Some(Path::new("/b")));
        assert_eq!(call.log(), Some(Path::new("/b/log.json")));
    }

    #[test]
    fn every_way_to_write_a_flag_is_understood() {
        for text in [
            "create -b /b c1",
            "create --bundle=/b c1",
            "-root=/r create -bundle /b c1",
            "run -b /b c1",
        ] {
            assert_eq!(parse(text).creates_from(), Some(Path::new("/b")), "{text}");
        }
        assert_eq!(parse("create c1").creates_from(), Some(Path::new(".")));
    }

    #[test]
    fn other_commands_create_nothing_whatever_their_arguments_are() {
        for text in [
            "",
            "--version",
            "--root create state c1",
            "--log create delete create",
            "exec c1 create --bundle /b",
            "start create",
            "--debug kill create 9",
        ] {
            assert_eq!(parse(text).creates_from(), None, "{text}");
        }
    }
}
