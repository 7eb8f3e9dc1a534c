//! Orders of operators, and questions about the cluster. They go to the cluster's manager, on whichever
//! shard it is. An order is sent at most once. Lives on its shard's thread.

use super::Gateway;
use crate::boot_time::BootTime;
use crate::cluster::{
    ClusterRequest, ClusterResponse, Decision, HotRange, Leaving, MembershipStatus, Setting,
    SplitPart, View,
};
use crate::env::{AsyncRuntime, Env};
use crate::error::{Error, OrderError};
use crate::types::{KeyRange, NodeId, RangeId, ShardId};

/// An order of an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Changes a setting of the cluster.
    Set {
        /// The setting.
        name: String,
        /// Its new value, as typed.
        value: String,
    },
    /// Another node must lead a range.
    TransferLeader {
        /// The range whose leader changes.
        range: RangeId,
        /// The node; any other than the present leader's if none is given.
        to: Option<NodeId>,
    },
    /// The replica of a range on a node must move.
    MoveReplica {
        /// The range whose replica moves.
        range: RangeId,
        /// The node that has the replica.
        from: NodeId,
        /// The node that gets it.
        to: NodeId,
        /// The shard of that node; the manager chooses if none is given.
        shard: Option<ShardId>,
    },
    /// A range that was held against merging may be merged again.
    ReleaseRange {
        /// The range that may be merged again.
        range: RangeId,
    },
    /// A range takes over its right neighbour.
    MergeRange {
        /// The left range, which takes over the other.
        range: RangeId,
    },
    /// A node drains, is decommissioned, is active again or is removed.
    SetMembership {
        /// The node whose membership changes.
        node: NodeId,
        /// Its new membership.
        status: MembershipStatus,
    },
}

impl From<Order> for ClusterRequest {
    fn from(order: Order) -> ClusterRequest {
        match order {
            Order::Set { name, value } => ClusterRequest::Set { name, value },
            Order::TransferLeader { range, to } => ClusterRequest::TransferLeader { range, to },
            Order::MoveReplica {
                range,
                from,
                to,
                shard,
            } => ClusterRequest::MoveReplica {
                range,
                from,
                to,
                shard,
            },
            Order::ReleaseRange { range } => ClusterRequest::ReleaseRange { range },
            Order::MergeRange { range } => ClusterRequest::MergeRange { range },
            Order::SetMembership { node, status } => ClusterRequest::SetMembership { node, status },
        }
    }
}

/// Why an order was not followed, or a question not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderFailure {
    /// The manager refused it.
    #[error(transparent)]
    Refused(#[from] OrderError),
    /// The manager was not reached, or did not answer in time.
    #[error(transparent)]
    Unanswered(#[from] Error),
    /// The manager answered something that is no answer to it.
    #[error("the manager answered something else")]
    Unreadable,
}

impl<E: Env> Gateway<E> {
    /// The state of the cluster.
    ///
    /// # Errors
    /// The manager did not answer in time.
    pub async fn view(&self, until: BootTime) -> Result<View, OrderFailure> {
        match self.manage(ClusterRequest::View, until).await? {
            ClusterResponse::View(view) => Ok(view),
            response => Err(unexpected(response)),
        }
    }

    /// All changes of the cluster's settings, oldest first.
    ///
    /// # Errors
    /// The manager did not answer in time.
    pub async fn settings(&self, until: BootTime) -> Result<Vec<Setting>, OrderFailure> {
        match self.manage(ClusterRequest::History, until).await? {
            ClusterResponse::Settings(settings) => Ok(settings),
            response => Err(unexpected(response)),
        }
    }

    /// What still keeps a node from leaving, or with `dry_run` what its decommissioning would do.
    ///
    /// # Errors
    /// There is no such node, or the manager did not answer in time.
    pub async fn leaving(
        &self,
        node: NodeId,
        dry_run: bool,
        until: BootTime,
    ) -> Result<Leaving, OrderFailure> {
        let question = ClusterRequest::Leaving { node, dry_run };
        match self.manage(question, until).await? {
            ClusterResponse::Leaving(leaving) => Ok(leaving),
            response => Err(unexpected(response)),
        }
    }

    /// Gives an order.
    ///
    /// # Errors
    /// The manager refused it, or did not answer in time: then it may have followed the order.
    pub async fn order(&self, order: Order, until: BootTime) -> Result<(), OrderFailure> {
        match self.manage(order.into(), until).await? {
            ClusterResponse::Done => Ok(()),
            response => Err(unexpected(response)),
        }
    }

    /// Orders a range to be split at keys, in any order. The ranges on both sides of each new border are
    /// held against merging until then, in milliseconds since 1970. Gives the ranges into which it was
    /// split, and if it was not split at all keys, why.
    ///
    /// # Errors
    /// It was split at no key, or the manager did not answer in time: then it may have followed the order.
    pub async fn split_range(
        &self,
        range: RangeId,
        keys: Vec<Vec<u8>>,
        held_until_ms: Option<u64>,
        until: BootTime,
    ) -> Result<(Vec<SplitPart>, Option<OrderError>), OrderFailure> {
        let order = ClusterRequest::SplitRange {
            range,
            keys,
            held_until_ms,
        };
        match self.manage(order, until).await? {
            ClusterResponse::Split { ranges, failed } => Ok((ranges, failed)),
            response => Err(unexpected(response)),
        }
    }

    /// The last decisions of the manager, oldest first.
    ///
    /// # Errors
    /// The manager did not answer in time.
    pub async fn decisions(&self, until: BootTime) -> Result<Vec<Decision>, OrderFailure> {
        match self.manage(ClusterRequest::Decisions, until).await? {
            ClusterResponse::Decisions(decisions) => Ok(decisions),
            response => Err(unexpected(response)),
        }
    }

    /// Orders a range to be split into parts of about the same size. For the rest as
    /// [`Gateway::split_range`].
    ///
    /// # Errors
    /// It has too few keys for that, and the errors of [`Gateway::split_range`].
    pub async fn split_into(
        &self,
        range: RangeId,
        parts: u32,
        held_until_ms: Option<u64>,
        until: BootTime,
    ) -> Result<(Vec<SplitPart>, Option<OrderError>), OrderFailure> {
        let order = ClusterRequest::SplitInto {
            range,
            parts,
            held_until_ms,
        };
        match self.manage(order, until).await? {
            ClusterResponse::Split { ranges, failed } => Ok((ranges, failed)),
            response => Err(unexpected(response)),
        }
    }

    /// Orders leaders and replicas of the users' ranges with keys in an interval to be spread evenly. Gives
    /// how many orders the manager gives for that, one after the other.
    ///
    /// # Errors
    /// The interval is empty, or the manager did not answer in time: then it may have followed the order.
    pub async fn scatter(&self, keys: KeyRange, until: BootTime) -> Result<u64, OrderFailure> {
        match self.manage(ClusterRequest::Scatter { keys }, until).await? {
            ClusterResponse::Scattered(orders) => Ok(orders),
            response => Err(unexpected(response)),
        }
    }

    /// The ranges with most CPU time, the hottest first, and their hottest keys.
    ///
    /// # Errors
    /// There are none or too many asked for, or the manager did not answer in time.
    pub async fn hot_ranges(
        &self,
        top: u32,
        until: BootTime,
    ) -> Result<Vec<HotRange>, OrderFailure> {
        match self
            .manage(ClusterRequest::HotRanges { top }, until)
            .await?
        {
            ClusterResponse::HotRanges(ranges) => Ok(ranges),
            response => Err(unexpected(response)),
        }
    }

    async fn manage(
        &self,
        request: ClusterRequest,
        until: BootTime,
    ) -> Result<ClusterResponse, OrderFailure> {
        let late = match request.is_order() {
            true => Error::unknown("the cluster's manager did not answer in time"),
            false => Error::DeadlineExceeded,
        };
        let asked = E::Runtime::timeout_at(until.into(), self.shard().manage(request)).await;
        Ok(asked.unwrap_or(Err(late))?)
    }
}

/// The failure for an answer of the manager that is not the expected one.
fn unexpected(response: ClusterResponse) -> OrderFailure {
    match response {
        ClusterResponse::Refused(why) => why.into(),
        ClusterResponse::NotHere { .. } => Error::NotLeader(None).into(),
        _ => OrderFailure::Unreadable,
    }
}
