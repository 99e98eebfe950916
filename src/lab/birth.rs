//! How a place comes to be: a process that makes new namespaces for itself and starts itself again
//! inside them, as process number 1.
//!
//! ```text
//! parent                 lab be PLACE               lab be PLACE --inside
//!   | --- starts ----------> | makes namespaces
//!   |                        | --- starts ---------------> | waits
//!   | <-- "born PID" --------| ends                        |
//!   | prepares (links into its network, netns file)        |
//!   | --- "go" ------------------------------------------> | furnishes itself, bears places
//!   | <-- "ready", or "error …" ---------------------------|
//!   | holds its standard input: for the lab itself this is the leash, see `lan`
//! ```
//!
//! The lab bears hosts, a host bears containers, all in this way. A child whose parent goes away
//! before "go" reads the end of its input and ends.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use weft_net::sandbox::{self, Namespace};

use super::layout::{Layout, Place};
use super::{container, host, lan};

/// The program as it is, even if its file was replaced meanwhile.
pub(crate) const OURSELVES: &str = "/proc/self/exe";

/// Takes a place in a lab (started by `weft lab up` only)
#[derive(Debug, clap::Args)]
pub(crate) struct BeArgs {
    place: Place,
    #[arg(long)]
    inside: bool,
    #[command(flatten)]
    layout: Layout,
}

/// A place that was born and waits to be told to go on.
#[derive(Debug)]
pub(crate) struct Born {
    /// Its process number 1, as we see it.
    pub(crate) pid: u32,
    place: Place,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Born {
    /// Bears a place; what goes wrong in it later is written to `log`.
    ///
    /// # Errors
    /// If the system does not let us make namespaces.
    pub(crate) fn bear(place: Place, layout: Layout, log: Stdio) -> Result<Self> {
        let mut child = command(place, layout)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("cannot start the weft program again")?;
        let pipes = pipes(&mut child);
        let (to, mut from) = pipes.context("a child without pipes")?;
        let said = read_line(&mut from)?;
        child.wait().context("cannot wait for a child")?;
        let pid = match said.split_once(' ') {
            Some(("born", pid)) => pid.parse().context("a process number is none")?,
            Some(("error", why)) => bail!("{why}"),
            Some(_) | None => bail!("{place} ended before it was born"),
        };
        Ok(Self {
            pid,
            place,
            to,
            from,
        })
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// If it is gone.
    pub(crate) fn go(&mut self) -> Result<()> {
        self.to
            .write_all(b"go\n")
            .with_context(|| format!("{} ended too early", self.place))
    }

    /// Waits until it is ready; what it still listens to on its standard input comes back.
    ///
    /// # Errors
    /// Its own words, if it is not.
    pub(crate) fn ready(mut self) -> Result<ChildStdin> {
        let said = read_line(&mut self.from)?;
        match said.split_once(' ') {
            None if said == "ready" => Ok(self.to),
            Some(("error", why)) => bail!("{}: {why}", self.place),
            Some(_) | None => bail!("{} ended before it was ready", self.place),
        }
    }
}

fn command(place: Place, layout: Layout) -> Command {
    let mut command = Command::new(OURSELVES);
    command
        .arg0("weft")
        .args(["lab", "be", &place.to_string()])
        .args(["--hosts", &layout.hosts.to_string()])
        .args(["--containers", &layout.containers.to_string()]);
    sandbox::with_open_signals(&mut command);
    command
}

fn pipes(child: &mut Child) -> Option<(ChildStdin, BufReader<ChildStdout>)> {
    Some((child.stdin.take()?, BufReader::new(child.stdout.take()?)))
}

fn read_line(from: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    from.read_line(&mut line)
        .context("cannot read what a child says")?;
    Ok(line.trim_end().to_owned())
}

/// Whether a command line (as `/proc/PID/cmdline` has it) is that of the process number 1 of a place.
pub(crate) fn holds(line: &[u8], place: Place) -> bool {
    let words: Vec<_> = line.split(|byte| *byte == 0).collect();
    let place = place.to_string();
    words.get(1..4) == Some(&[b"lab".as_slice(), b"be", place.as_bytes()])
        && words.contains(&b"--inside".as_slice())
}

/// Runs `lab be`. Comes back only outside, or if something failed; the parent has been told.
pub(crate) fn be(args: &BeArgs) -> Result<()> {
    let result = if args.inside {
        inside(args)
    } else {
        outside(args)
    };
    if let Err(error) = &result {
        // One line, whatever the error holds.
        tell(&format!("error {error:#}").replace('\n', " "))?;
    }
    result
}

fn outside(args: &BeArgs) -> Result<()> {
    let mut kinds = vec![
        Namespace::Network,
        Namespace::Mount,
        Namespace::Hostname,
        Namespace::Process,
    ];
    if args.place == Place::Lan {
        sandbox::leave_terminal().context("cannot leave the terminal")?;
        if !sandbox::has_sys_admin() {
            kinds.push(Namespace::User);
        }
    }
    sandbox::make_namespaces(&kinds)?;
    let child = command(args.place, args.layout)
        .arg("--inside")
        .current_dir("/")
        .spawn();
    let child = child.context("cannot start the weft program in new namespaces")?;
    tell(&format!("born {}", child.id()))
}

fn inside(args: &BeArgs) -> Result<()> {
    if read_line(&mut io::stdin().lock())? != "go" {
        bail!("{} was left alone before it began", args.place);
    }
    match args.place {
        Place::Lan => lan::set_up(args.layout)?,
        Place::Host(number) => host::set_up(number, args.layout)?,
        Place::Container(number) => container::set_up(number)?,
    }
    tell("ready")?;
    if args.place == Place::Lan {
        lan::end_with_leash();
    }
    sandbox::reap_for_ever().context("cannot wait for children")?;
    Ok(())
}

fn tell(line: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .context("nobody listens any more")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line_of(command: &Command) -> Vec<u8> {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words
            .flat_map(|word| [word.as_encoded_bytes(), &[0]].concat())
            .collect()
    }

    #[test]
    fn a_place_is_known_by_its_command_line() {
        let layout = Layout {
            hosts: 12,
            containers: 1,
        };
        let mut command = command(Place::Host(1), layout);
        assert!(
            !holds(&line_of(&command), Place::Host(1)),
            "the process outside holds nothing"
        );
        command.arg("--inside");
        let line = line_of(&command);
        assert!(holds(&line, Place::Host(1)));
        assert!(!holds(&line, Place::Host(12)));
        assert!(!holds(&line, Place::Container(1)));
    }

    #[test]
    fn other_command_lines_hold_no_place() {
        for line in [
            b"".as_slice(),
            b"\0",
            b"weft\0lab\0",
            b"sh\0-c\0lab be host1 --inside\0",
        ] {
            assert!(!holds(line, Place::Host(1)));
        }
    }
}
