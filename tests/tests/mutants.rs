//! The simulator finds each of the deliberate bugs of `engine/src/mutant.rs`, and calls none of the
//! same runs wrong without it. Built with the feature `mutants` alone; part of `scripts/soak`.
//!
//! A mutant names the runs by which it is found: those of [`run`](rangedb_tests::sim::run) with random
//! faults, or those of [`install`](rangedb_tests::sim::install) in which the power goes at some point, or
//! those of a scenario, such as [`directed`](rangedb_tests::sim::directed).
//! `RANGEDB_MUTANT_SEEDS` sets how many seeds a mutant has, `RANGEDB_SEED` the first.
#![cfg(feature = "mutants")]

use std::ops::RangeInclusive;

use rangedb_engine::mutant::{self, Mutant};
use rangedb_tests::sim::catch_up;
use rangedb_tests::sim::change_of_bounds;
use rangedb_tests::sim::directed::Scenario;
use rangedb_tests::sim::install::{Install, LAGGARD};
use rangedb_tests::sim::put_back;
use rangedb_tests::sim::run::{Report, faults_of};
use rangedb_tests::sim::shrink::{caught, failure, run_caught};

/// A mutant must be found within this many seeds.
const SEEDS: u64 = 2_000;
/// For each seed, the points of an install at which the power fails.
const POINTS: u64 = 40;

type Ended = Result<Report, String>;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

fn seeds() -> RangeInclusive<u64> {
    let (first, count) = (
        number("RANGEDB_SEED", 1),
        number("RANGEDB_MUTANT_SEEDS", SEEDS),
    );
    first..=first + count - 1
}

/// What is wrong with a run that has the bug; without it the run must be right.
fn shows(mutant: Mutant, run: impl Fn() -> Ended) -> Option<String> {
    mutant::set(Some(mutant));
    let ended = run();
    mutant::set(None);
    let what = failure(&ended)?;
    assert_eq!(failure(&run()), None, "the run fails without a mutant");
    what.lines().next().map(str::to_owned)
}

/// Runs with random faults.
fn seed(mutant: Mutant, seed: u64) -> Option<String> {
    shows(mutant, || run_caught(seed, &faults_of(seed)))
}

/// Installs in which the power of the receiver fails at several points, first with a fast log, then with
/// a slow one.
fn install(mutant: Mutant, seed: u64) -> Option<String> {
    [false, true].into_iter().find_map(|slow_log| {
        let install = |crash| Install {
            seed,
            slow_log,
            crash,
        };
        let whole = caught(|| install(None).run());
        let points = whole.ok()?.polls.get(&LAGGARD).copied()?;
        let step = (points / POINTS).max(1);
        let mut at = (1..=points).step_by(step as usize);
        at.find_map(|at| {
            let what = shows(mutant, || caught(|| install(Some((LAGGARD, at))).run()))?;
            Some(format!(
                "power gone at {at} of {points}, slow log {slow_log}: {what}"
            ))
        })
    })
}

/// A scenario that brings about the moment in which the bug shows.
fn directed(scenario: Scenario) -> impl Fn(Mutant, u64) -> Option<String> {
    move |mutant, seed| shows(mutant, || caught(|| scenario.run(seed)))
}

/// A fixed scenario that reports what is wrong with a seed.
fn scenario(mutant: Mutant, seed: u64, failure: fn(u64) -> Option<String>) -> Option<String> {
    mutant::set(Some(mutant));
    // An assertion of openraft may come before ours.
    let ended = caught(|| Ok(failure(seed)));
    mutant::set(None);
    let what = ended.unwrap_or_else(Some)?;
    assert_eq!(failure(seed), None, "the run fails without a mutant");
    Some(what)
}

/// Snapshots of a range that is too large for every seed, while clients write.
fn snapshot_of_many_parts(mutant: Mutant, seed: u64) -> Option<String> {
    scenario(mutant, seed, catch_up::failure)
}

/// Folders that are put back to older copies.
fn folder_put_back(mutant: Mutant, seed: u64) -> Option<String> {
    scenario(mutant, seed, put_back::failure)
}

/// A write that is applied after a change of its range's bounds.
fn change_of_bounds(mutant: Mutant, seed: u64) -> Option<String> {
    scenario(mutant, seed, change_of_bounds::failure)
}

/// Runs until one shows the bug.
fn find(mutant: Mutant, by: impl Fn(Mutant, u64) -> Option<String>) {
    for seed in seeds() {
        if let Some(what) = by(mutant, seed) {
            println!("mutant {mutant:?}: found at seed {seed}: {what}");
            return;
        }
    }
    panic!("mutant {mutant:?} lives through seeds {:?}", seeds());
}

macro_rules! mutants {
    ($($name:ident: $mutant:ident by $by:expr),* $(,)?) => {
        $(#[test]
        fn $name() {
            find(Mutant::$mutant, $by);
        })*

        #[test]
        fn every_mutant_has_a_test() {
            assert_eq!(Mutant::ALL, [$(Mutant::$mutant),*]);
        }
    };
}

mutants! {
    finds_acknowledge_before_durable: AcknowledgeBeforeDurable by seed,
    finds_lease_without_margin: LeaseWithoutMargin by seed,
    finds_vote_after_restart: VoteAfterRestart by seed,
    finds_pre_vote_grants: PreVoteGrants by seed,
    finds_fast_read_before_own_entry: FastReadBeforeOwnEntry by seed,
    finds_served_timestamps_forgotten: ServedTimestampsForgotten by seed,
    finds_session_request_forgotten: SessionRequestForgotten by seed,
    finds_purge_before_durable: PurgeBeforeDurable by seed,
    finds_snapshot_before_durable: SnapshotBeforeDurable by install,
    finds_snapshot_install_without_log: SnapshotInstallWithoutLog by install,
    finds_vote_before_durable: VoteBeforeDurable by seed,
    finds_read_barrier_asks_nobody: ReadBarrierAsksNobody by seed,
    finds_truncation_not_logged: TruncationNotLogged by seed,
    finds_marks_left_out_of_snapshot: MarksLeftOutOfSnapshot by seed,
    finds_epoch_unchecked_at_apply: EpochUncheckedAtApply by change_of_bounds,
    finds_cas_before_log: CasBeforeLog by seed,
    finds_moved_after_apply: MovedAfterApply by change_of_bounds,
    finds_retry_under_new_id: RetryUnderNewId by seed,
    finds_damaged_frame_taken: DamagedFrameTaken by seed,
    finds_snapshot_pins_no_log: SnapshotPinsNoLog by snapshot_of_many_parts,
    finds_snapshot_keeps_no_versions: SnapshotKeepsNoVersions by seed,
    finds_fresh_log_over_old_tables: FreshLogOverOldTables by seed,
    finds_old_folder_votes: OldFolderVotes by folder_put_back,
    finds_first_condition_alone: FirstConditionAlone by seed,
    finds_forwarded_again: ForwardedAgain by seed,
    finds_forwarded_epoch_unchecked: ForwardedEpochUnchecked by seed,
    finds_older_route_preferred: OlderRoutePreferred by seed,
    finds_deadline_ignored: DeadlineIgnored by seed,
    finds_cached_row_not_updated: CachedRowNotUpdated by seed,
    finds_overtaken_read_cached: OvertakenReadCached by seed,
    finds_row_of_removed_replica: RowOfRemovedReplica by seed,
    finds_multi_get_at_two_moments: MultiGetAtTwoMoments by seed,
    finds_cold_read_unconfirmed: ColdReadUnconfirmed by directed(Scenario::DeposedReader),
    finds_drained_node_leads: DrainedNodeLeads by seed,
    finds_reads_during_split: ReadsDuringSplit by directed(Scenario::LeaderAppliesLate),
    finds_scan_goes_on_in_closed_keys: ScanGoesOnInClosedKeys by directed(Scenario::LeaderAppliesLate),
    finds_campaign_while_vote_is_saved: CampaignWhileVoteIsSaved by directed(Scenario::PowerOverSlowDisk),
    finds_birth_not_durable: BirthNotDurable by directed(Scenario::PowerAtBirth),
    finds_parent_goes_first: ParentGoesFirst by directed(Scenario::ParentMoves),
    finds_session_request_copied: SessionRequestCopied by seed,
    finds_collector_told_between_turns: CollectorToldBetweenTurns by directed(Scenario::SplitsWhileFlushing),
    finds_floor_forgotten_at_merge: FloorForgottenAtMerge by directed(Scenario::ClockAhead),
    finds_thaw_before_cancel: ThawBeforeCancel by directed(Scenario::DeafAtMerge),
    finds_freeze_of_another_attempt: FreezeOfAnotherAttempt by directed(Scenario::TwoAttempts),
    finds_merge_before_freeze_at_start: MergeBeforeFreezeAtStart by directed(Scenario::PowerAfterMerge),
    finds_stale_leader_sleeps_on: StaleLeaderSleepsOn by directed(Scenario::SleepingLeaderRemoved),
    finds_deposed_manager_asks_nobody: DeposedManagerAsksNobody by directed(Scenario::SleepingLeaderRemoved),
    finds_runs_though_taken_over: RunsThoughTakenOver by directed(Scenario::PowerBeforeMergeIsMarked),
    finds_frozen_replica_removed: FrozenReplicaRemoved by seed,
    finds_childs_rows_collected: ChildsRowsCollected by directed(Scenario::ChildMoves),
    finds_export_of_whole_data_id: ExportOfWholeDataId by seed,
    finds_change_after_lost_report: ChangeAfterLostReport by seed,
    finds_unreadable_is_absent: UnreadableIsAbsent by directed(Scenario::UnreadableBlocks),
    finds_cold_scan_unchecked: ColdScanUnchecked by seed,
}
