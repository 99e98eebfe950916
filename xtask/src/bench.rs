//! Benches: how long each step of a frame's way takes, or how many instructions, which a busy machine does
//! not change.
//!
//! Instructions are counted by valgrind. Each bench runs twice, the second time for more rounds; what the second
//! run has more of is those rounds' and nothing else's. Valgrind knows no AVX-512, so sealing is counted as on a
//! processor without.

use std::process::Output;

use crate::{cargo, has, install_packages, run};

/// Every bench there is, with its crate.
const BENCHES: &[(&str, &str)] = &[("weft-wire", "parse"), ("weft-router", "data_path")];
/// Rounds of the first run, and how many more the second has.
const ROUNDS: u64 = 100;
const MORE: u64 = 2000;

/// Times the benches with `filter` in their names.
pub(crate) fn time(filter: &str) -> Result<(), String> {
    for (package, bench) in BENCHES {
        let args = format!("bench --locked --package {package} --bench {bench} -- {filter}");
        run(cargo("bench", &args))?;
    }
    Ok(())
}

/// Counts the instructions of one round of each bench with `filter` in its name.
pub(crate) fn count(filter: &str) -> Result<(), String> {
    install_packages(&[("valgrind", "valgrind")])?;
    if !has("valgrind") {
        return Err("there is no valgrind (Debian's valgrind): install it".into());
    }
    println!("instructions  bench");
    for (package, bench) in BENCHES {
        let bench = Bench { package, bench };
        for name in bench.names(filter)? {
            let few = bench.instructions(&name, ROUNDS)?;
            let many = bench.instructions(&name, ROUNDS + MORE)?;
            println!("{:>12}  {name}", many.saturating_sub(few) / MORE);
        }
    }
    Ok(())
}

/// One bench program.
struct Bench {
    package: &'static str,
    bench: &'static str,
}

impl Bench {
    /// What it can run, by the names it goes by.
    fn names(&self, filter: &str) -> Result<Vec<String>, String> {
        let output = self.run(&[], &["--list", filter])?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let names = printed
            .lines()
            .filter_map(|line| line.strip_suffix(": benchmark"));
        Ok(names.map(str::to_owned).collect())
    }

    /// Instructions of a whole run with so many rounds of one bench.
    fn instructions(&self, name: &str, rounds: u64) -> Result<u64, String> {
        let rounds = rounds.to_string();
        let output = self.run(
            &["--config", COUNTING],
            &[
                "--exact",
                name,
                "--sample-count",
                "1",
                "--sample-size",
                &rounds,
            ],
        )?;
        let said = String::from_utf8_lossy(&output.stderr);
        let count = said
            .lines()
            .find_map(|line| line.split_once(" Collected : "));
        let count = count.and_then(|(_, count)| count.trim().parse().ok());
        count.ok_or_else(|| format!("valgrind has not counted {name}:\n{said}"))
    }

    fn run(&self, cargo: &[&str], args: &[&str]) -> Result<Output, String> {
        let output = crate::command("cargo")
            .args(cargo)
            .args(["bench", "--locked", "--package", self.package])
            .args(["--bench", self.bench, "--"])
            .args(args)
            .output()
            .map_err(|e| format!("cargo: {e}"))?;
        if output.status.success() {
            Ok(output)
        } else {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("{} {args:?} failed:\n{said}", self.bench))
        }
    }
}

/// Has cargo run what it built under valgrind.
const COUNTING: &str = "target.'cfg(all())'.runner = \
    ['valgrind', '--tool=callgrind', '--callgrind-out-file=/dev/null']";
