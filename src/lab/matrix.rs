//! Every container pings every other by name: the measurement, and the table it is shown as.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Result;
use serde::Serialize;

use super::layout::Place;
use super::ping::{Answer, milliseconds};
use super::running::Lab;

/// Round trips between all containers of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Matrix {
    places: Vec<Place>,
    cells: BTreeMap<(Place, Place), Result<u64, String>>,
}

/// One round trip, as `--json` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Cell {
    from: String,
    to: String,
    rtt_us: Option<u64>,
    error: Option<String>,
}

/// How many containers ping at once: enough to be quick, few enough not to measure ourselves.
const AT_ONCE: usize = 4;
/// Echoes of which the best counts: the first one waits for ARP.
const ECHOES: &str = "3";
/// How long an echo may take, in milliseconds.
const PATIENCE: &str = "1000";

impl Matrix {
    /// Measures.
    ///
    /// # Errors
    /// If the pings cannot be started; a ping that fails is part of the result.
    pub(crate) fn measure(lab: &Lab) -> Result<Self> {
        let places: Vec<_> = lab.layout().containers().collect();
        let names: Vec<_> = places.iter().map(ToString::to_string).collect();
        let mut cells = BTreeMap::new();
        for some in places.chunks(AT_ONCE) {
            let mut started = Vec::new();
            for from in some {
                let others = names
                    .iter()
                    .filter(|name| **name != from.to_string())
                    .map(String::as_str);
                let ping = [
                    "weft",
                    "lab",
                    "ping",
                    "--json",
                    "--count",
                    ECHOES,
                    "--timeout",
                    PATIENCE,
                ];
                let words: Vec<_> = ping.into_iter().chain(others).collect();
                if words.len() > ping.len() {
                    started.push((*from, lab.start(*from, &words)?));
                }
            }
            for (from, ping) in started {
                let (_, printed, said) = ping.outcome()?;
                cells.extend(read(from, &places, &printed, &said));
            }
        }
        Ok(Self { places, cells })
    }

    /// Whether every container reached every other.
    pub(crate) fn is_full(&self) -> bool {
        self.cells.len() == self.places.len() * self.places.len().saturating_sub(1)
            && self.cells.values().all(Result::is_ok)
    }

    /// Who did not reach whom, and why; a line each.
    pub(crate) fn failures(&self) -> Vec<String> {
        let failed = self
            .cells
            .iter()
            .filter_map(|(pair, cell)| Some((pair, cell.as_ref().err()?)));
        failed
            .map(|((from, to), error)| format!("{from} to {to}: {error}"))
            .collect()
    }

    /// All round trips, for `--json`.
    pub(crate) fn cells(&self) -> Vec<Cell> {
        let cell = |(&(from, to), result): (&(Place, Place), &Result<u64, String>)| Cell {
            from: from.to_string(),
            to: to.to_string(),
            rtt_us: result.as_ref().ok().copied(),
            error: result.as_ref().err().cloned(),
        };
        self.cells.iter().map(cell).collect()
    }
}

fn read(
    from: Place,
    places: &[Place],
    printed: &str,
    said: &str,
) -> Vec<((Place, Place), Result<u64, String>)> {
    let answers: Vec<Answer> = printed
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let result = |to: Place| {
        let name = to.to_string();
        let answer = answers.iter().find(|answer| answer.name == name);
        let error = || {
            answer
                .and_then(|answer| answer.error.clone())
                .unwrap_or_else(|| said.trim().to_owned())
        };
        answer.and_then(|answer| answer.best_us).ok_or_else(error)
    };
    places
        .iter()
        .filter(|to| **to != from)
        .map(|to| ((from, *to), result(*to)))
        .collect()
}

impl fmt::Display for Matrix {
    /// A table, rows from, columns to, in milliseconds; `-` where nothing came back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |head: &str, cells: Vec<String>| {
            let cells: String = cells.iter().map(|cell| format!("{cell:>9}")).collect();
            format!("{head:<9}{cells}").trim_end().to_owned()
        };
        let names = self.places.iter().map(ToString::to_string);
        f.write_str(&row("from \\ to", names.collect()))?;
        for from in &self.places {
            let cells = self
                .places
                .iter()
                .map(|to| match self.cells.get(&(*from, *to)) {
                    Some(Ok(us)) => milliseconds(*us),
                    Some(Err(_)) => "-".to_owned(),
                    None => String::new(),
                });
            write!(f, "\n{}", row(&from.to_string(), cells.collect()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Place = Place::Container(1);
    const B: Place = Place::Container(2);

    fn matrix(back: Result<u64, String>) -> Matrix {
        Matrix {
            places: vec![A, B],
            cells: BTreeMap::from([((A, B), Ok(840)), ((B, A), back)]),
        }
    }

    #[test]
    fn a_full_matrix_shows_every_round_trip() {
        let full = matrix(Ok(12_345));
        assert!(full.is_full() && full.failures().is_empty());
        let lines = [
            "from \\ to       c1       c2",
            "c1                     0.84",
            "c2           12.34",
        ];
        assert_eq!(full.to_string(), lines.join("\n"));
    }

    #[test]
    fn one_failed_ping_is_shown_with_its_reason() {
        let broken = matrix(Err("no answer".to_owned()));
        assert!(!broken.is_full());
        assert_eq!(broken.failures(), ["c2 to c1: no answer"]);
        assert!(broken.to_string().ends_with("\nc2               -"));
    }

    #[test]
    fn a_ping_that_said_nothing_is_a_failure_to_all() {
        let cells = read(A, &[A, B], "not json\n", "cannot run weft\n");
        assert_eq!(cells, [((A, B), Err("cannot run weft".to_owned()))]);
        assert!(
            !Matrix {
                places: vec![A, B],
                cells: cells.into_iter().collect()
            }
            .is_full()
        );
    }

    #[test]
    fn nobody_to_ping_is_a_full_matrix() {
        assert!(
            Matrix {
                places: vec![A],
                cells: BTreeMap::new()
            }
            .is_full()
        );
    }
}
