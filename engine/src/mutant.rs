//! Deliberate bugs, by which the simulator is tested: it must find each of them.
//!
//! Only with the feature `mutants`, which nothing turns on but the test of the mutants, can one be
//! switched on, for the thread that asks. Without it [`is`] is a constant, and nothing of this is
//! in the code that is built.

/// A deliberate bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// The log says that entries are durable before they are written.
    AcknowledgeBeforeDurable,
    /// A leader's lease gets the drift margin added, not taken off.
    LeaseWithoutMargin,
    /// A restarted replica does not know that it may have promised a lease, and votes at once.
    VoteAfterRestart,
    /// A pre-vote is granted to whoever asks.
    PreVoteGrants,
    /// A replica serves as soon as it is elected, before its own blank entry is applied.
    FastReadBeforeOwnEntry,
    /// A leader keeps in its memory alone up to where it has served snapshots.
    ServedTimestampsForgotten,
    /// Requests of sessions do not become durable with the rows.
    SessionRequestForgotten,
    /// The log is purged up to what is applied, not up to what tables hold.
    PurgeBeforeDurable,
    /// A snapshot is installed before its rows are durable.
    SnapshotBeforeDurable,
    /// A replica uses a snapshot before the log says so durably.
    SnapshotInstallWithoutLog,
    /// A vote is answered before it is durable.
    VoteBeforeDurable,
    /// A read without a lease does not wait for a majority.
    ReadBarrierAsksNobody,
    /// Entries that are dropped from a log's end are dropped in memory alone.
    TruncationNotLogged,
    /// A snapshot does not say up to where its clients' writes are answered.
    MarksLeftOutOfSnapshot,
    /// A write that was proposed under an older version of its range is applied.
    EpochUncheckedAtApply,
    /// The leader decides a compare-and-swap when it is proposed, not when it is applied.
    CasBeforeLog,
    /// A write of an older version of its range is answered with `moved`, and applied all the same.
    MovedAfterApply,
    /// A client's retry has a request id of its own. In the simulator's client.
    RetryUnderNewId,
    /// A frame of another node is taken whatever its checksums say.
    DamagedFrameTaken,
    /// The log is purged as if no snapshot were under way.
    SnapshotPinsNoLog,
    /// Versions are collected of which a snapshot is still to speak.
    SnapshotKeepsNoVersions,
    /// Log, tables and `node.json` are not compared at a start: a log that was lost begins anew.
    FreshLogOverOldTables,
    /// A replica that has lost what it had acknowledged goes on voting and acknowledging.
    OldFolderVotes,
    /// Of a batch's conditions the first alone is looked at.
    FirstConditionAlone,
    /// The shard that gets a forwarded request, and has no replica of the range, forwards it again.
    ForwardedAgain,
    /// The shard that gets a forwarded request does not look at the version that its sender believes in.
    ForwardedEpochUnchecked,
    /// Of two routes to a range the directory keeps the one of the older epoch.
    OlderRoutePreferred,
    /// A write is proposed, and waits, also after its deadline.
    DeadlineIgnored,
    /// A write does not reach the row cache.
    CachedRowNotUpdated,
    /// The row cache takes in what a read of the tables has found, though a write came after that read.
    OvertakenReadCached,
    /// The row cache answers for a replica with the rows of one that was there before it.
    RowOfRemovedReplica,
    /// A multi-get that goes on in a later turn reads what is newest by then.
    MultiGetAtTwoMoments,
    /// A read without a lease that meets a block which is not in memory waits for that alone, and for no
    /// majority.
    ///
    /// It stands for a read that does not check the lease again after it has waited for the disk. That is
    /// harmless: the read had a lease when it began, so everything acknowledged before that is applied here,
    /// and what is applied only grows. What it finds at its end was true at a moment of the call.
    ColdReadUnconfirmed,
    /// The manager gives leaderships to a node that drains as to any other.
    DrainedNodeLeads,
    /// A leader goes on serving the keys of a range that is being split off.
    ReadsDuringSplit,
    /// A scan goes on in keys that are being split off at the timestamp at which it read the rest.
    ScanGoesOnInClosedKeys,
    /// A replica campaigns although the vote of its last campaign is still being made durable.
    CampaignWhileVoteIsSaved,
    /// A replica is born before its birth is durable.
    BirthNotDurable,
    /// A replica is removed, or becomes a snapshot, though a child still needs its log.
    ParentGoesFirst,
    /// Requests of sessions stay in the parent's table as well when their keys move to the child.
    SessionRequestCopied,
    /// The garbage collector is told of the parent's new bounds in the turn of a split, and of the newborn
    /// in a later one, when that knows its leader.
    ///
    /// A collector that is told of both in the later turn is harmless: until then it knows the parent with
    /// its old bounds, which own the rows, and the child's threshold is the parent's.
    CollectorToldBetweenTurns,
    /// A merge takes over nothing of the right range's time, and nodes' clocks do not follow what followers
    /// apply.
    ///
    /// To forget the floor alone is harmless, since three checks do the same. What the right range has served
    /// lies below the timestamp of its freeze; the left leader's own replica of it has applied the freeze
    /// before the merge is proposed, so the node's clock is above it, and so is the merge's timestamp.
    FloorForgottenAtMerge,
    /// A cancelled merge lets the right range thaw before the left one has applied the cancellation.
    ThawBeforeCancel,
    /// A replica that is frozen for an earlier merge counts as frozen for this one.
    FreezeOfAnotherAttempt,
    /// A start applies a merge before the right replica has applied its log up to the freeze.
    MergeBeforeFreezeAtStart,
    /// A leader that sleeps is not told of a later term.
    StaleLeaderSleepsOn,
    /// A manager that reaches no majority reports to itself alone.
    DeposedManagerAsksNobody,
    /// A replica that was taken over while its group started is a range of the shard all the same.
    RunsThoughTakenOver,
    /// A frozen replica goes when it is ordered to, though its left neighbour still needs it.
    FrozenReplicaRemoved,
    /// The rows of a child that has gone are collected, though its parent would apply the split again after a
    /// restart, and entries before it that look at those rows.
    ChildsRowsCollected,
    /// A snapshot has all rows of its data id, also those of other ranges.
    ExportOfWholeDataId,
    /// The manager takes a change of a report although it has not taken all that comes before it.
    ChangeAfterLostReport,
    /// A read whose block cannot be read finds nothing there.
    UnreadableIsAbsent,
    /// A scan that has waited for a block goes on without looking whether its keys and versions are still there.
    ColdScanUnchecked,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Mutant; 54] = [
        Mutant::AcknowledgeBeforeDurable,
        Mutant::LeaseWithoutMargin,
        Mutant::VoteAfterRestart,
        Mutant::PreVoteGrants,
        Mutant::FastReadBeforeOwnEntry,
        Mutant::ServedTimestampsForgotten,
        Mutant::SessionRequestForgotten,
        Mutant::PurgeBeforeDurable,
        Mutant::SnapshotBeforeDurable,
        Mutant::SnapshotInstallWithoutLog,
        Mutant::VoteBeforeDurable,
        Mutant::ReadBarrierAsksNobody,
        Mutant::TruncationNotLogged,
        Mutant::MarksLeftOutOfSnapshot,
        Mutant::EpochUncheckedAtApply,
        Mutant::CasBeforeLog,
        Mutant::MovedAfterApply,
        Mutant::RetryUnderNewId,
        Mutant::DamagedFrameTaken,
        Mutant::SnapshotPinsNoLog,
        Mutant::SnapshotKeepsNoVersions,
        Mutant::FreshLogOverOldTables,
        Mutant::OldFolderVotes,
        Mutant::FirstConditionAlone,
        Mutant::ForwardedAgain,
        Mutant::ForwardedEpochUnchecked,
        Mutant::OlderRoutePreferred,
        Mutant::DeadlineIgnored,
        Mutant::CachedRowNotUpdated,
        Mutant::OvertakenReadCached,
        Mutant::RowOfRemovedReplica,
        Mutant::MultiGetAtTwoMoments,
        Mutant::ColdReadUnconfirmed,
        Mutant::DrainedNodeLeads,
        Mutant::ReadsDuringSplit,
        Mutant::ScanGoesOnInClosedKeys,
        Mutant::CampaignWhileVoteIsSaved,
        Mutant::BirthNotDurable,
        Mutant::ParentGoesFirst,
        Mutant::SessionRequestCopied,
        Mutant::CollectorToldBetweenTurns,
        Mutant::FloorForgottenAtMerge,
        Mutant::ThawBeforeCancel,
        Mutant::FreezeOfAnotherAttempt,
        Mutant::MergeBeforeFreezeAtStart,
        Mutant::StaleLeaderSleepsOn,
        Mutant::DeposedManagerAsksNobody,
        Mutant::RunsThoughTakenOver,
        Mutant::FrozenReplicaRemoved,
        Mutant::ChildsRowsCollected,
        Mutant::ExportOfWholeDataId,
        Mutant::ChangeAfterLostReport,
        Mutant::UnreadableIsAbsent,
        Mutant::ColdScanUnchecked,
    ];
}

/// Whether this build can switch bugs on.
pub const ENABLED: bool = cfg!(feature = "mutants");

/// Whether a bug is switched on: never.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn is(_: Mutant) -> bool {
    false
}

#[cfg(feature = "mutants")]
thread_local! {
    static ON: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}

/// Whether a bug is switched on for this thread.
#[cfg(feature = "mutants")]
pub fn is(mutant: Mutant) -> bool {
    ON.get() == Some(mutant)
}

/// Switches one bug on for this thread, or all off.
#[cfg(feature = "mutants")]
pub fn set(mutant: Option<Mutant>) {
    ON.set(mutant);
}
