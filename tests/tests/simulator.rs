//! The simulator over many seeds, its determinism, and the suites that its runtime must pass.
//!
//! `RANGEDB_SEEDS` sets how many seeds run, `RANGEDB_SEED` the first; with `RANGEDB_SOAK_SECONDS`
//! seeds run until the time is up. `RANGEDB_FAULTS`, a list of numbers, leaves all other faults out.
//! `RANGEDB_SCENARIO`, a name such as `UnreadableBlocks`, leaves the other directed scenarios out.
//! `RANGEDB_LOG=info` prints what the nodes log.

use std::time::{Duration, Instant};

use rangedb_tests::sim::catch_up;
use rangedb_tests::sim::change_of_bounds;
use rangedb_tests::sim::clocks::{Chain, furthest_ahead};
use rangedb_tests::sim::digests::{Found, damage, spoil};
use rangedb_tests::sim::directed::Scenario;
use rangedb_tests::sim::install::{Install, LAGGARD};
use rangedb_tests::sim::known_faults::{self, KnownFault};
use rangedb_tests::sim::merge::Merge;
use rangedb_tests::sim::put_back::{Copy, put_back};
use rangedb_tests::sim::run::{Report, faults_of, run, run_with};
use rangedb_tests::sim::runtime::SimRuntime;
use rangedb_tests::sim::scans::{Between, retry_and_scan, scan};
use rangedb_tests::sim::shrink::run_or_explain;
use rangedb_tests::sim::split::Split;

/// Seeds of an ordinary run of the tests.
const SEEDS: u64 = 200;
/// Points of an install at which its other machines crash in an ordinary run.
const POINTS: u64 = 50;
/// Seeds of each fault that other systems had.
const KNOWN_FAULT_SEEDS: u64 = 8;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

fn log() {
    if let Ok(filter) = std::env::var("RANGEDB_LOG") {
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .without_time();
        // The other test has set it.
        let _ = subscriber.try_init();
    }
}

/// The faults to keep, if not all.
fn faults() -> Option<Vec<usize>> {
    let text = std::env::var("RANGEDB_FAULTS").ok()?;
    let numbers = text.split(',').filter(|word| !word.is_empty());
    Some(
        numbers
            .map(|word| word.parse().expect("a number"))
            .collect(),
    )
}

fn run_seeds(part: u64) {
    log();
    let first = number("RANGEDB_SEED", 1);
    let count = number("RANGEDB_SEEDS", SEEDS);
    let soak = number("RANGEDB_SOAK_SECONDS", 0);
    let until = (soak > 0).then(|| Instant::now() + Duration::from_secs(soak));
    let faults = faults();
    let mut seed = first + (first + part) % 2;
    let (mut runs, mut done, mut restarts, mut snapshots) = (0, 0, 0, 0);
    let (mut orders, mut disks_lost, mut confirmed) = (0, 0, 0);
    loop {
        let more = match until {
            Some(until) => Instant::now() < until,
            None => seed < first + count,
        };
        if !more {
            break;
        }
        let report =
            run_or_explain(seed, faults.as_deref()).unwrap_or_else(|what| panic!("{what}"));
        (runs, done, restarts) = (runs + 1, done + report.done, restarts + report.restarts);
        snapshots += report.snapshots;
        (orders, disks_lost) = (orders + report.orders, disks_lost + report.disks_lost);
        confirmed += report.confirmed;
        seed += 2;
    }
    println!("{runs} seeds, {done} writes, {restarts} starts, {snapshots} snapshots taken over");
    println!("{orders} orders followed, {disks_lost} disks lost, {confirmed} reads confirmed");
}

#[test]
fn simulator_holds_its_invariants_over_odd_seeds() {
    run_seeds(1);
}

#[test]
fn simulator_holds_its_invariants_over_even_seeds() {
    run_seeds(0);
}

/// The report of a run of a fixed scenario that violates nothing.
fn unharmed((seed, crash): (u64, Option<(u16, u64)>), ended: Result<Report, String>) -> Report {
    let report = ended.unwrap_or_else(|what| panic!("{crash:?}: {what}"));
    let violations = &report.violations;
    assert!(
        violations.is_empty(),
        "seed {seed}, crash {crash:?}: {violations:#?}"
    );
    report
}

/// Cuts a machine's power at points of an install: at this many, spread evenly, or in a soak at every
/// one.
fn try_installs(machine: u16, slow_log: bool, tries: Option<u64>) {
    log();
    let seed = number("RANGEDB_SEED", 1);
    let run = |crash| {
        let install = Install {
            seed,
            slow_log,
            crash,
        };
        unharmed((seed, crash), install.run())
    };
    let whole = run(None);
    let points = whole.polls.get(&machine).copied();
    let points = points.expect("the snapshot was taken over");
    let tries = tries.filter(|_| number("RANGEDB_SOAK_SECONDS", 0) == 0);
    let step = tries.map_or(1, |tries| (points / tries).max(1));
    let mut survived = 0;
    for at in (1..=points).step_by(step as usize) {
        let restarts = run(Some((machine, at))).restarts;
        assert!(restarts > whole.restarts, "no crash at {at} of {points}");
        survived += 1;
    }
    println!("machine {machine} of seed {seed} lost its power at {survived} of {points} points");
}

#[test]
fn simulator_survives_a_crash_of_who_takes_a_snapshot_at_every_point() {
    try_installs(LAGGARD, false, None);
    try_installs(LAGGARD, true, Some(POINTS));
}

#[test]
fn simulator_survives_a_crash_of_who_sends_a_snapshot_at_many_points() {
    // One of them sends it.
    try_installs(1, false, Some(POINTS));
    try_installs(2, false, Some(POINTS));
}

#[test]
fn simulator_survives_a_crash_at_every_point_of_a_split() {
    log();
    let seed = number("RANGEDB_SEED", 1);
    let run = |crash| unharmed((seed, crash), Split { seed, crash }.run());
    try_points(run, None);
}

#[test]
fn simulator_survives_a_crash_at_many_points_of_a_merge() {
    log();
    let seed = number("RANGEDB_SEED", 1);
    let run = |crash| unharmed((seed, crash), Merge { seed, crash }.run());
    try_points(run, Some(POINTS));
}

/// Runs the faults that other systems had, each from several seeds.
fn try_known_faults(which: impl Fn(KnownFault) -> bool) {
    log();
    let first = number("RANGEDB_SEED", 1);
    let most = number("RANGEDB_SEEDS", KNOWN_FAULT_SEEDS).min(KNOWN_FAULT_SEEDS);
    let is_soak = number("RANGEDB_SOAK_SECONDS", 0) > 0;
    for fault in known_faults::ALL.into_iter().filter(|fault| which(*fault)) {
        // A hundred ranges take a while.
        let is_long = fault == KnownFault::ChainOfSplitsWithOneFarBehind;
        let count = if is_long && !is_soak { 1 } else { most };
        let mut orders = 0;
        for seed in first..first + count {
            let report = fault.run(seed);
            let report = report.unwrap_or_else(|what| panic!("{fault:?}, seed {seed}: {what}"));
            let violations = &report.violations;
            assert!(
                violations.is_empty(),
                "{fault:?}, seed {seed}: {violations:#?}"
            );
            orders += report.orders;
        }
        println!("{fault:?}: {count} seeds, {orders} orders followed");
        assert!(orders > 0, "{fault:?}: no order was followed");
    }
}

#[test]
fn simulator_survives_what_other_systems_met_when_they_split() {
    try_known_faults(|fault| !fault.merges());
}

#[test]
fn simulator_survives_what_other_systems_met_when_they_merged() {
    try_known_faults(KnownFault::merges);
}

/// Has each of three machines lose its power at points of a change of bounds: at this many, spread evenly,
/// or at every one. In a soak it is every one.
fn try_points(run: impl Fn(Option<(u16, u64)>) -> Report, tries: Option<u64>) {
    let whole = run(None);
    let tries = tries.filter(|_| number("RANGEDB_SOAK_SECONDS", 0) == 0);
    for machine in 1..=3 {
        let points = whole.polls.get(&machine).copied();
        let points = points.expect("the bounds were changed");
        let step = tries.map_or(1, |tries| (points / tries).max(1));
        let mut survived = 0;
        for at in (1..=points).step_by(step as usize) {
            let restarts = run(Some((machine, at))).restarts;
            assert!(restarts > whole.restarts, "no crash at {at} of {points}");
            survived += 1;
        }
        println!("machine {machine} lost its power at {survived} of {points} points");
    }
}

#[test]
fn simulator_keeps_clocks_within_a_second_of_the_wall_clock() {
    log();
    for chain in [
        Chain::HandOvers,
        Chain::Restarts,
        Chain::Splits,
        Chain::Scans,
    ] {
        for seed in 1..=3 {
            let ahead = furthest_ahead(seed, chain).unwrap_or_else(|what| panic!("{what}"));
            println!("{chain:?}, seed {seed}: {ahead} ms ahead at most");
            assert!(ahead < 1_000, "{chain:?}, seed {seed}: {ahead} ms ahead");
        }
    }
}

#[test]
fn simulator_keeps_no_log_for_a_snapshot_where_the_disk_has_no_room() {
    log();
    let first = number("RANGEDB_SEED", 1);
    let was_pinned = |seed| {
        let caught_up = catch_up::run_catch_up(seed, 0).unwrap_or_else(|what| panic!("{what}"));
        println!("seed {seed}: {caught_up:?}");
        // With the log kept, one snapshot is enough; without, only with luck.
        caught_up.after.is_some() && caught_up.snapshots < 2
    };
    assert!(!(first..first + 5).all(was_pinned));
}

#[test]
fn simulator_catches_up_by_one_snapshot_while_clients_write() {
    log();
    let first = number("RANGEDB_SEED", 1);
    for seed in first..first + 3 {
        assert_eq!(catch_up::failure(seed), None, "seed {seed}");
    }
}

#[test]
fn simulator_applies_no_write_after_a_change_of_its_ranges_bounds() {
    let first = number("RANGEDB_SEED", 1);
    for seed in first..first + 100 {
        assert_eq!(change_of_bounds::failure(seed), None, "seed {seed}");
    }
}

#[test]
fn simulator_holds_its_invariants_in_the_moments_that_steps_are_there_for() {
    log();
    let (first, count) = (number("RANGEDB_SEED", 1), number("RANGEDB_SEEDS", 3));
    let chosen = std::env::var("RANGEDB_SCENARIO").ok();
    let is_chosen = |scenario: &Scenario| {
        let name = format!("{scenario:?}");
        chosen.as_ref().is_none_or(|chosen| *chosen == name)
    };
    for scenario in Scenario::ALL.into_iter().filter(is_chosen) {
        // In this seed a scan began at the leader that applies late, after the others had acknowledged writes.
        let known = (scenario == Scenario::LeaderAppliesLate).then_some(16);
        for seed in (first..first + count).chain(known) {
            let ended = scenario.run(seed);
            let report = ended.unwrap_or_else(|what| panic!("{scenario:?}, seed {seed}: {what}"));
            let violations = &report.violations;
            assert!(
                violations.is_empty(),
                "{scenario:?}, seed {seed}: {violations:#?}"
            );
        }
    }
}

#[test]
fn simulator_scans_what_was_acknowledged_before_over_changes_of_bounds() {
    log();
    let first = number("RANGEDB_SEED", 1);
    let mut failed = Vec::new();
    for between in Between::ALL {
        for seed in first..first + 5 {
            let why = scan(seed, between).err();
            failed.extend(why.map(|why| format!("seed {seed}: {why}")));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn simulator_applies_a_retry_once_and_goes_on_with_a_scan_after_every_change_of_a_range() {
    log();
    let first = number("RANGEDB_SEED", 1);
    for seed in first..first + 5 {
        assert_eq!(retry_and_scan(seed), Ok(()), "seed {seed}");
    }
}

#[test]
fn simulator_lets_no_folder_that_was_put_back_vote() {
    log();
    let first = number("RANGEDB_SEED", 1);
    for seed in first..first + 5 {
        for copy in [Copy::SameStart, Copy::EarlierStart] {
            let ended = put_back(seed, copy).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
            println!("seed {seed}, {copy:?}: {ended:?}");
            let is_old = ended.is_some_and(|why| why.contains("older"));
            assert_eq!(is_old, copy == Copy::EarlierStart, "seed {seed}");
        }
    }
}

#[test]
fn simulator_finds_a_replica_whose_rows_were_changed() {
    log();
    for (seed, machine, leads) in [(1, &[1_u16], false), (2, &[3], false), (3, &[2], true)] {
        let found = spoil(seed, machine, leads).unwrap_or_else(|what| panic!("{what}"));
        let expected = Found {
            different: 1,
            removed: machine.to_vec(),
            halted: false,
        };
        assert_eq!(found, expected, "seed {seed}");
    }
}

#[test]
fn simulator_takes_no_damaged_message() {
    log();
    for seed in 1..=3 {
        let found = damage(seed, 20).unwrap_or_else(|what| panic!("{what}"));
        println!("seed {seed}: {found:?}");
        assert!(found.damaged > 20 && found.compared > 0, "{found:?}");
        assert_eq!((found.taken, found.different), (0, 0), "seed {seed}");
    }
}

#[test]
fn simulator_stops_a_range_whose_replicas_all_differ() {
    log();
    let found = spoil(4, &[1, 2], false).unwrap_or_else(|what| panic!("{what}"));
    assert!(found.halted, "{found:?}");
    assert!(found.removed.is_empty(), "{found:?}");
}

#[test]
fn simulator_gives_the_same_trace_for_the_same_seed() {
    for seed in [1, 2, 3, 77, 1234] {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
    assert_ne!(run(1).map(|r| r.trace), run(2).map(|r| r.trace));
    // Also without some of its faults.
    let fewer = faults_of(3).only(&[1]);
    assert_eq!(run_with(3, &fewer), run_with(3, &fewer));
}

#[test]
fn simulator_runtime_conforms_to_openraft() {
    use openraft_rt::AsyncRuntime;
    let mut runtime = SimRuntime::new(1);
    openraft_rt::testing::Suite::<SimRuntime>::test_all_on(&mut runtime);
}
