//! The simulator finds each of the deliberate bugs of `engine/src/mutant.rs`, and calls none of the
//! same seeds wrong without it. Built with the feature `mutants` alone; part of `scripts/soak`.
//!
//! `RANGEDB_MUTANT_SEEDS` sets how many seeds a mutant has, `RANGEDB_SEED` the first.
#![cfg(feature = "mutants")]

use rangedb_engine::mutant::{self, Mutant};
use rangedb_tests::sim::run::faults_of;
use rangedb_tests::sim::shrink::{failure, run_caught};

/// A mutant is found within so many seeds.
const SEEDS: u64 = 2_000;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// Runs seeds until one shows the bug, which must be right without it.
fn find(mutant: Mutant) {
    let (first, count) = (
        number("RANGEDB_SEED", 1),
        number("RANGEDB_MUTANT_SEEDS", SEEDS),
    );
    for seed in first..first + count {
        mutant::set(Some(mutant));
        let ended = run_caught(seed, &faults_of(seed));
        mutant::set(None);
        if let Some(what) = failure(&ended) {
            let line = what.lines().next().unwrap_or_default();
            println!("mutant {mutant:?}: found at seed {seed}: {line}");
            let sound = failure(&run_caught(seed, &faults_of(seed)));
            assert_eq!(sound, None, "seed {seed} fails without a mutant");
            return;
        }
    }
    panic!("mutant {mutant:?} lives through {count} seeds from {first}");
}

macro_rules! mutants {
    ($($name:ident: $mutant:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            find(Mutant::$mutant);
        })*

        #[test]
        fn every_mutant_has_a_test() {
            assert_eq!(Mutant::ALL, [$(Mutant::$mutant),*]);
        }
    };
}

mutants! {
    finds_acknowledge_before_durable: AcknowledgeBeforeDurable,
    finds_lease_without_margin: LeaseWithoutMargin,
    finds_vote_after_restart: VoteAfterRestart,
    finds_pre_vote_grants: PreVoteGrants,
    finds_fast_read_before_own_entry: FastReadBeforeOwnEntry,
    finds_served_timestamps_forgotten: ServedTimestampsForgotten,
    finds_session_pair_forgotten: SessionPairForgotten,
    finds_purge_before_durable: PurgeBeforeDurable,
}
