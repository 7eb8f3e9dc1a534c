//! How a merge changes the states of two neighbours: the left range takes over the keys of the right range,
//! which then no longer exists.
//!
//! A merge is several entries in two logs. The right range is **frozen** by an entry of its own log: from then
//! on it applies no write, and its state stays as it is. When every replica has applied that entry, and its log
//! says so durably, the left range is **merged** by an entry of its log: each of its replicas takes over the
//! frozen replica on its shard (`range/replica/take_over.rs`). If that fails, the merge is
//! **cancelled** by an entry of the left log that raises the left version. After that no entry of this merge
//! has an effect. Only then may the right range **thaw**. [`MergeId`] names the attempt. The steps in order are
//! in the chapter of `shard/split_merge/merge.rs`. Pure and deterministic, as a part of
//! [`crate::range::apply`].

use crate::error::Fatal;
use crate::raft;
use crate::range::command::{ArchivedAction, ArchivedCommand, ArchivedFreezeOrder};
use crate::range::command::{ArchivedMergeOrder, ArchivedRangeOrder};
use crate::range::state::RangeState;
use crate::range::state::merged_borders::MergedBorder;
use crate::types::{ArchivedMergeId, Epoch, MergeId, RangeId, Timestamp};

impl ArchivedMergeId {
    /// The id as a value.
    pub fn to_native(&self) -> MergeId {
        MergeId {
            left: RangeId(self.left.0.to_native()),
            version: self.version.to_native(),
        }
    }
}

/// Whether a command has no effect because the range is frozen. Only a thaw has one then.
pub fn is_held_back(state: &RangeState, command: &ArchivedCommand<'_>) -> bool {
    let thaws = matches!(
        command.action,
        ArchivedAction::Order(ArchivedRangeOrder::Unfreeze { .. })
    );
    state.frozen.is_some() && !thaws
}

/// Freezes the range, if its bounds and members are those that the order knows. The ceiling becomes the
/// highest timestamp that was served; this is final, since the leader has stopped serving.
///
/// # Errors
/// The membership in the state is damaged.
pub fn freeze(
    state: &mut RangeState,
    order: &ArchivedFreezeOrder,
    proposed: Epoch,
) -> Result<bool, Fatal> {
    let now = state.descriptor.epoch;
    let fits = proposed.version == now.version && order.conf.to_native() == now.conf;
    if !fits || is_joint(state)? {
        return Ok(false);
    }
    state.frozen = Some(order.merge.to_native());
    state.ceiling = Timestamp(order.served.to_native());
    Ok(true)
}

/// Lets the range apply writes again, if it is frozen for this merge.
pub fn thaw(state: &mut RangeState, merge: &ArchivedMergeId) -> bool {
    let is_it = state.frozen == Some(merge.to_native());
    if is_it {
        state.frozen = None;
    }
    is_it
}

/// Takes over the right neighbour's keys, its last timestamp, its ceiling and its collection threshold, if
/// the bounds and members of this range are those that the order knows. The session table is not taken
/// over here but in `range/replica/take_over.rs`.
///
/// # Errors
/// The membership in the state is damaged.
pub fn merge(
    state: &mut RangeState,
    order: &ArchivedMergeOrder,
    proposed: Epoch,
) -> Result<bool, Fatal> {
    let now = state.descriptor.epoch;
    let fits = proposed.version == now.version
        && order.conf.to_native() == now.conf
        && order.merge.to_native().version == now.version
        && state.descriptor.keys.end.as_deref() == Some(&order.border[..]);
    if !fits || is_joint(state)? {
        return Ok(false);
    }
    let right_version = order.right_version.to_native();
    state.descriptor.keys.end = order.end.as_ref().map(|end| end.to_vec());
    state.descriptor.epoch.version = now.version.max(right_version) + 1;
    let timestamp = |of: &crate::types::ArchivedTimestamp| Timestamp(of.0.to_native());
    state.last_ts = state.last_ts.max(timestamp(&order.last_ts));
    state.ceiling = state.ceiling.max(timestamp(&order.ceiling));
    state.gc_threshold = state.gc_threshold.max(timestamp(&order.gc_threshold));
    absorb_borders(state, vec![(order.border.to_vec(), state.last_ts)]);
    Ok(true)
}

/// Takes over borders: that of a merge, and those of the range that was taken over.
pub fn absorb_borders(state: &mut RangeState, borders: Vec<MergedBorder>) {
    state.borders.add(borders);
    state.borders.forget(state.gc_threshold);
    if let Some(refused) = state.borders.drop_oldest() {
        state.gc_threshold = state.gc_threshold.max(refused);
    }
}

/// If the merge is still pending, raises the version: then none of its entries has an effect. Gives
/// whether it was pending.
pub fn cancel(state: &mut RangeState, merge: &ArchivedMergeId) -> bool {
    let epoch = &mut state.descriptor.epoch;
    let is_pending = merge.to_native().version == epoch.version;
    epoch.version += u32::from(is_pending);
    is_pending
}

fn is_joint(state: &RangeState) -> Result<bool, Fatal> {
    let voters = raft::voters(&state.membership.body);
    let (_, is_joint) = voters.map_err(|error| {
        Fatal::Inconsistent(format!(
            "the membership of range {}: {error}",
            state.range()
        ))
    })?;
    Ok(is_joint)
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
