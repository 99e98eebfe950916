//! Ctrl-C while a lab is on its way up takes it down.

use std::process::exit;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use weft_net::sandbox::{Caught, Signals};

use super::say;
use super::state::{LabDir, Record};

/// Watches for Ctrl-C, SIGTERM and the end of the terminal.
#[derive(Debug, Clone)]
pub(crate) struct Interruption(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    happened: bool,
    lab: Option<(LabDir, Record)>,
}

/// Ended by Ctrl-C, as a shell counts it.
const INTERRUPTED: i32 = 130;

impl Interruption {
    /// Begins to watch; from now on an interruption ends this process after the lab.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn watch() -> Result<Self> {
        let signals = Signals::hold().context("cannot hold back signals")?;
        let interruption = Self(Arc::default());
        let ours = interruption.clone();
        thread::spawn(move || {
            while let Ok(caught) = signals.next() {
                match caught {
                    Caught::Child => {}
                    Caught::Keyboard | Caught::End(_) => ours.happen(),
                }
            }
        });
        Ok(interruption)
    }

    /// Names the lab to take down.
    pub(crate) fn take_down(&self, dir: &LabDir, record: &Record) {
        self.state().lab = Some((dir.clone(), record.clone()));
    }

    /// Stands still if an interruption is at work: what fails then fails because of it.
    pub(crate) fn yield_to(&self) {
        while self.state().happened {
            thread::park();
        }
    }

    fn happen(&self) -> ! {
        let lab = {
            let mut state = self.state();
            state.happened = true;
            state.lab.take()
        };
        if let Some((dir, record)) = lab {
            match record.end().and_then(|()| dir.remove()) {
                Ok(()) => say::progress("interrupted: the lab is down"),
                Err(error) => {
                    say::progress(&format!("interrupted, but the lab is not down: {error}"))
                }
            }
        }
        exit(INTERRUPTED)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
