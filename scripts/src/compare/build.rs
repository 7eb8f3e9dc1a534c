//! `compare build`: the same work on the node of this checkout and on that of another build, such as an older
//! release. The server runs on the first core, the load generator on the second.
//!
//! The `loadgen` beside the other `rangedb` drives that, so that a build with an older protocol can be measured; if
//! there is none, this checkout's `loadgen` drives both. The builds take turns in each round, and the first turn changes with the
//! rounds. A ratio is that of one round: below 1 for CPU means that this checkout needs less.

use super::one_node::{Build, Measured, OPTIONS, Plan, Programs};
use super::table;
use crate::Outcome;
use crate::process::{self, stop_children_on_signals};

/// The names of the builds in the table.
const THIS: &str = "this";
const OTHER: &str = "other";

/// The figures of one round.
#[derive(Default)]
struct Round {
    this: Measured,
    other: Measured,
}

/// The program of the other build, and what is measured.
fn parse(options: &[&str]) -> Result<(String, Plan), String> {
    let usage = || format!("usage: compare build PROGRAM {OPTIONS}");
    let (program, options) = options.split_first().ok_or_else(usage)?;
    let mut plan = Plan::new();
    match options.chunks(2).all(|option| plan.take(option)) {
        true => Ok(((*program).to_owned(), plan)),
        false => Err(usage()),
    }
}

/// Builds the binaries, measures both builds in turn, and prints a table after each round.
pub fn run(options: &[&str]) -> Outcome {
    let (program, plan) = parse(options)?;
    if !std::path::Path::new(&program).is_file() {
        return Err(format!(
            "there is no program {program}; give the path of another build of rangedb"
        ));
    }
    process::build_programs()?;
    stop_children_on_signals()?;
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let works = plan.works();
    let start = |programs: Programs, name: &str| {
        let place = folder.path().join(format!("{name}-large"));
        Build::new(programs, &place, &plan, &works)
    };
    let this = start(Programs::of_this()?, THIS)?;
    let other = start(programs_of(program)?, OTHER)?;
    let mut rounds = Vec::new();
    for number in 1..=plan.common.rounds {
        let mut round = Round::default();
        let mut turns = [(&this, &mut round.this), (&other, &mut round.other)];
        if number % 2 == 0 {
            turns.reverse();
        }
        for (build, measured) in turns {
            let place = folder.path().join("round");
            *measured = build.measure(&place, &plan)?;
            // Absent if all works are on the node with many records.
            if place.exists() {
                std::fs::remove_dir_all(&place).map_err(|error| error.to_string())?;
            }
        }
        rounds.push(round);
        print(&plan, &rounds);
    }
    this.stop()?;
    other.stop()
}

/// The programs of the build that `rangedb` belongs to.
fn programs_of(rangedb: String) -> Result<Programs, String> {
    let beside = std::path::Path::new(&rangedb).with_file_name("loadgen");
    let loadgen = match beside.is_file() {
        true => beside.display().to_string(),
        false => Programs::of_this()?.loadgen,
    };
    Ok(Programs { rangedb, loadgen })
}

fn print(plan: &Plan, rounds: &[Round]) {
    println!("\n{}", plan.describe(rounds.len()));
    table::heading();
    for work in plan.works() {
        let this = |round: &Round| round.this.get(work.name).copied();
        let other = |round: &Round| round.other.get(work.name).copied();
        table::figures(work.name, THIS, rounds, this);
        table::figures("", OTHER, rounds, other);
        table::ratio(OTHER, rounds, this, other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_program_comes_first_and_options_follow() {
        let (program, plan) = parse(&["old/rangedb", "--rows", "put"]).expect("options");
        assert_eq!((program.as_str(), plan.works().len()), ("old/rangedb", 3));
        for wrong in [&[][..], &["old", "--rows"], &["old", "--speed", "1"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_build_is_driven_by_its_own_load_generator() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("rangedb").display().to_string();
        let loadgen = folder.path().join("loadgen");
        let without = programs_of(program.clone()).expect("programs");
        assert_ne!(without.loadgen, loadgen.display().to_string());
        std::fs::write(&loadgen, "").expect("it is written");
        let with = programs_of(program).expect("programs");
        assert_eq!(with.loadgen, loadgen.display().to_string());
    }
}
