//! Administration: the nodes and ranges of the cluster and their health, its settings, and the orders of an
//! operator.
//!
//! Any node takes a command and has the cluster's manager answer it. Newer releases may add fields and
//! variants to these structs and enums. A client ignores those that it does not know.

use std::time::Duration;

use rangedb_protocol::admin::{
    Balance, Command, History, HotRanges, Nodes, Ranges, Scattered, Settings,
};
pub use rangedb_protocol::admin::{
    BlockReason, BlockedRange, Borders, BoundsState, ClusterStatus, Decision, Departure, Epoch,
    Health, HealthReason, HotKey, HotRange, Leaving, Liveness, Membership, Node, NodeConfig,
    NodeEvent, NodeHistory, NodeSetting, Period, Range, RangeRates, RangeStats, Reloaded, Replica,
    ReplicaInTrouble, ReplicaState, Setting, SettingChange, SettingDifference, SettingRefused,
    Split, SplitBlocked, SplitFailure, SplitPart, Step, SystemLeader,
};
pub use rangedb_protocol::{MemoryUse, NodeState, RangeState, Route, ShardState};
use rangedb_protocol::{Reply, RequestBody, Session};
use serde::de::DeserializeOwned;

use crate::client::Client;
use crate::core::Kind;
use crate::error::{Error, ErrorCode, Fate};
use crate::retry_loop::{Request, Take};

/// The administration of the cluster, from [`Client::admin`]. It shares the client's connections and
/// timeout.
///
/// ```no_run
/// # use rangedb_client::{Client, Error};
/// # async fn example(client: Client) -> Result<(), Error> {
/// let admin = client.admin();
/// for range in admin.ranges().await? {
///     if range.leader_node == Some(3) && !range.system {
///         admin.transfer_leader(range.id, None).await?;
///     }
/// }
/// admin.config_set("balance", "off").await?;
/// # Ok(())
/// # }
/// ```
///
/// Calls that show something change nothing and are tried again as reads are. Orders
/// ([`transfer_leader`](Admin::transfer_leader), [`move_replica`](Admin::move_replica),
/// [`split_range`](Admin::split_range), [`split_range_into`](Admin::split_range_into),
/// [`merge_range`](Admin::merge_range), [`release_range`](Admin::release_range),
/// [`scatter_ranges`](Admin::scatter_ranges),
/// [`drain_node`](Admin::drain_node) and its likes, [`config_set`](Admin::config_set)) are not tried
/// again once a node may have taken them; each may be given again. An order that cannot be carried out
/// now fails with [`ErrorCode::Busy`], one that the cluster's state forbids until somebody changes it
/// with [`ErrorCode::Conflict`], one that is wrong with [`ErrorCode::Invalid`], and one that names what
/// is not there with [`ErrorCode::NotFound`].
#[derive(Clone, Debug)]
pub struct Admin {
    client: Client,
}

impl Client {
    /// The administration of the cluster.
    pub fn admin(&self) -> Admin {
        Admin {
            client: self.clone(),
        }
    }
}

impl Admin {
    /// The state of the cluster.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn status(&self) -> Result<ClusterStatus, Error> {
        self.show(Command::Status {}).await
    }

    /// The nodes of the cluster.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn nodes(&self) -> Result<Vec<Node>, Error> {
        let answer: Nodes = self.show(Command::Nodes {}).await?;
        Ok(answer.nodes)
    }

    /// The ranges of the cluster, the system range among them.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn ranges(&self) -> Result<Vec<Range>, Error> {
        let answer: Ranges = self.show(Command::Ranges {}).await?;
        Ok(answer.ranges)
    }

    /// The ranges of users' keys that take the most CPU time, the hottest first, each with its hottest
    /// keys: from 1 to 100 ranges.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn hot_ranges(&self, top: u32) -> Result<Vec<HotRange>, Error> {
        let answer: HotRanges = self.show(Command::HotRanges { top }).await?;
        Ok(answer.ranges)
    }

    /// All settings of the cluster, whether they were ever set or not.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn config(&self) -> Result<Vec<Setting>, Error> {
        let answer: Settings = self.show(Command::ConfigGet { name: None }).await?;
        Ok(answer.settings)
    }

    /// A setting of the cluster.
    ///
    /// # Errors
    /// See [`Error`]; [`ErrorCode::NotFound`] if there is no such setting.
    pub async fn config_get(&self, name: &str) -> Result<Setting, Error> {
        let name = Some(name.to_owned());
        self.show(Command::ConfigGet { name }).await
    }

    /// All changes of settings, oldest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn config_history(&self) -> Result<Vec<SettingChange>, Error> {
        let answer: History = self.show(Command::ConfigHistory {}).await?;
        Ok(answer.history)
    }

    /// Changes a setting of the cluster.
    ///
    /// # Errors
    /// See [`Error`]; its fate tells whether the setting was changed.
    pub async fn config_set(&self, name: &str, value: &str) -> Result<(), Error> {
        let (name, value) = (name.to_owned(), value.to_owned());
        self.order(Command::ConfigSet { name, value }).await
    }

    /// The settings of one node, whichever answers.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn node_config(&self) -> Result<NodeConfig, Error> {
        self.show(Command::NodeConfig {}).await
    }

    /// Has one node, whichever answers, read its settings again. If one of them is refused, nothing
    /// changes. Doing it twice does what doing it once does.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn reload(&self) -> Result<Reloaded, Error> {
        self.show(Command::Reload {}).await
    }

    /// Has another node lead a range: `to`, or any other than the present leader's. While the setting
    /// `balance` is on, the balancer may soon choose another leader.
    ///
    /// # Errors
    /// See [`Error`]; its fate tells whether the order was taken.
    pub async fn transfer_leader(&self, range: u64, to: Option<u64>) -> Result<(), Error> {
        self.order(Command::TransferLeader { range, to }).await
    }

    /// Moves the replica of a range on node `from` to a shard of node `to_node`; to the one with the
    /// fewest replicas if no shard is given. When the call returns the move has begun.
    ///
    /// # Errors
    /// See [`Error`]; its fate tells whether the order was taken.
    pub async fn move_replica(
        &self,
        range: u64,
        from: u64,
        to_node: u64,
        to_shard: Option<u16>,
    ) -> Result<(), Error> {
        let order = Command::MoveReplica {
            range,
            from,
            to_node,
            to_shard,
        };
        self.order(order).await
    }

    /// Splits a range at keys, in any order. The first of the ranges in the answer has the id of this one;
    /// the others are new. The new borders are held against merging: for an hour if `hold` is not given, for
    /// ever with [`Duration::MAX`], and not at all with [`Duration::ZERO`].
    ///
    /// If the range was split at some of the keys only, the answer says why; an order is refused as a whole
    /// if it was split at none. Many keys take longer than a usual timeout; see
    /// [`Client::with_timeout`].
    ///
    /// # Errors
    /// See [`Error`]; its fate tells whether the range may have been split.
    pub async fn split_range(
        &self,
        range: u64,
        at: &[Vec<u8>],
        hold: Option<Duration>,
    ) -> Result<Split, Error> {
        let (at, hold_ms) = (at.to_vec(), hold.map(in_ms));
        self.order_answered(Command::SplitRange { range, at, hold_ms })
            .await
    }

    /// Splits a range into parts of about the same size, from 2 to 1024. For the rest as
    /// [`split_range`](Admin::split_range).
    ///
    /// # Errors
    /// See [`Error`]; [`ErrorCode::Conflict`] if the range has too few keys.
    pub async fn split_range_into(
        &self,
        range: u64,
        parts: u32,
        hold: Option<Duration>,
    ) -> Result<Split, Error> {
        let hold_ms = hold.map(in_ms);
        let command = Command::SplitInto {
            range,
            parts,
            hold_ms,
        };
        self.order_answered(command).await
    }

    /// Has leaders and replicas of the users' ranges with keys in an interval spread evenly over nodes and
    /// shards, whatever loads they carry; without an end all from `start` on. Gives how many orders that
    /// takes. When the call returns the manager has begun to give them, at the limits of balance;
    /// [`decisions`](Admin::decisions) shows them.
    ///
    /// # Errors
    /// See [`Error`]; its fate tells whether the order was taken. [`ErrorCode::Invalid`] if the interval is
    /// empty.
    pub async fn scatter_ranges(&self, start: &[u8], end: Option<&[u8]>) -> Result<u64, Error> {
        let command = Command::ScatterRanges {
            start: start.to_vec(),
            end: end.map(<[u8]>::to_vec),
        };
        let answer: Scattered = self.order_answered(command).await?;
        Ok(answer.orders)
    }

    /// The last decisions of the cluster's manager, at most 100, oldest first: which leaders and replicas it
    /// has moved and which ranges it has split, why, and what became of it. A new manager knows none.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn decisions(&self) -> Result<Vec<Decision>, Error> {
        let answer: Balance = self.show(Command::Balance {}).await?;
        Ok(answer.decisions)
    }

    /// Has a range take over its right neighbour, which is no more after that. The replicas of the
    /// neighbour move to the shards of the range first, so this may take longer than a usual timeout; see
    /// [`Client::with_timeout`].
    ///
    /// # Errors
    /// See [`Error`]; its fate tells whether the ranges may have been merged.
    pub async fn merge_range(&self, range: u64) -> Result<(), Error> {
        let command = Command::MergeRange { range };
        self.send(&command, Kind::Order).await.map(drop)
    }

    /// Has a range be no longer held against merging, as it is after
    /// [`split_range`](Admin::split_range).
    ///
    /// # Errors
    /// See [`Error`]; its fate tells whether the order was taken.
    pub async fn release_range(&self, range: u64) -> Result<(), Error> {
        self.order(Command::ReleaseRange { range }).await
    }

    /// Has other nodes lead what a node leads, so that it can stop without a failed request. When the
    /// call returns that has begun; [`leaving`](Admin::leaving) shows how far it is. It lasts until
    /// [`undrain_node`](Admin::undrain_node), also while the node is stopped and started.
    ///
    /// # Errors
    /// See [`Error`]; [`ErrorCode::Conflict`] if a range would be left without a majority.
    pub async fn drain_node(&self, node: u64) -> Result<(), Error> {
        self.order(Command::DrainNode { node }).await
    }

    /// Takes a drain or a decommissioning back.
    ///
    /// # Errors
    /// See [`Error`]; its fate tells whether the order was taken.
    pub async fn undrain_node(&self, node: u64) -> Result<(), Error> {
        self.order(Command::UndrainNode { node }).await
    }

    /// Moves all replicas of a node to other nodes. When the call returns that has begun;
    /// [`leaving`](Admin::leaving) shows how far it is.
    ///
    /// # Errors
    /// See [`Error`]; [`ErrorCode::Conflict`] if some of its replicas can go nowhere.
    pub async fn decommission_node(&self, node: u64) -> Result<(), Error> {
        self.order(Command::DecommissionNode { node }).await
    }

    /// What [`decommission_node`](Admin::decommission_node) would move, and what it could not move.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn decommission_dry_run(&self, node: u64) -> Result<Leaving, Error> {
        let dry_run = true;
        self.show(Command::NodeLeaving { node, dry_run }).await
    }

    /// Forgets a node that is dead or decommissioned. Its id is refused from then on.
    ///
    /// # Errors
    /// See [`Error`]; [`ErrorCode::Conflict`] if the node is still needed.
    pub async fn remove_node(&self, node: u64) -> Result<(), Error> {
        self.order(Command::RemoveNode { node }).await
    }

    /// What still keeps a node that drains or is decommissioned from leaving.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn leaving(&self, node: u64) -> Result<Leaving, Error> {
        let dry_run = false;
        self.show(Command::NodeLeaving { node, dry_run }).await
    }

    /// The state of one node, whichever answers, with its shards and their replicas. It needs no
    /// majority and no manager.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn node_state(&self) -> Result<NodeState, Error> {
        let take: Take<NodeState> = |reply, _| match reply {
            Reply::Node(node) => Some(*node),
            _ => None,
        };
        self.call(&|_| RequestBody::Status, Kind::Read, take).await
    }

    /// What one node has kept of its past between two times, in milliseconds since 1970. Without a node
    /// it is that of the one which answers; if another one answers than was meant, the call fails with
    /// [`ErrorCode::Invalid`]. It needs no majority and no manager.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn history(
        &self,
        node: Option<u64>,
        (from_ms, to_ms): (Option<u64>, Option<u64>),
        step: Step,
    ) -> Result<NodeHistory, Error> {
        let histograms = false;
        let command = Command::History {
            node,
            from_ms,
            to_ms,
            step,
            histograms,
        };
        self.show(command).await
    }

    /// The same of the node with this id, with the histograms of latencies, by which the histories of several
    /// nodes can be summed up.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn history_with_histograms(
        &self,
        node: u64,
        (from_ms, to_ms): (u64, u64),
        step: Step,
    ) -> Result<NodeHistory, Error> {
        let command = Command::History {
            node: Some(node),
            from_ms: Some(from_ms),
            to_ms: Some(to_ms),
            step,
            histograms: true,
        };
        self.show(command).await
    }

    /// Sends a command that changes nothing, and reads the answer.
    async fn show<T: DeserializeOwned>(&self, command: Command) -> Result<T, Error> {
        read(&self.send(&command, Kind::Read).await?)
    }

    /// Sends a command that changes something. A node answers it when it was carried out, so what the
    /// answer says does not matter.
    async fn order(&self, command: Command) -> Result<(), Error> {
        self.send(&command, Kind::Order).await.map(|_| ())
    }

    /// The same for a command whose answer says more.
    async fn order_answered<T: DeserializeOwned>(&self, command: Command) -> Result<T, Error> {
        let mut answer = read(&self.send(&command, Kind::Order).await?);
        if let Err(error) = &mut answer {
            // The order was carried out.
            error.fate = Fate::Applied;
        }
        answer
    }

    async fn send(&self, command: &Command, kind: Kind) -> Result<String, Error> {
        let command = serde_json::to_string(command).map_err(|error| {
            Error::new(ErrorCode::Internal, Fate::NotApplied, error.to_string())
        })?;
        let take: Take<String> = |reply, _| match reply {
            Reply::Admin { json } => Some(json.to_owned()),
            _ => None,
        };
        let body = |_| RequestBody::Admin { command: &command };
        self.call(&body, kind, take).await
    }

    async fn call<'a, T>(
        &self,
        body: &'a (dyn Fn(Session) -> RequestBody<'a> + Sync),
        kind: Kind,
        take: Take<T>,
    ) -> Result<T, Error> {
        let deadline = self.client.deadline();
        self.client
            .call(Request {
                key: None,
                body,
                kind,
                take,
                deadline,
            })
            .await
    }
}

/// A duration in milliseconds; the longest ones are for ever.
fn in_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Reads an answer.
fn read<T: DeserializeOwned>(json: &str) -> Result<T, Error> {
    serde_json::from_str(json).map_err(|error| {
        let message = format!("the node's answer is not understood: {error}");
        Error::new(ErrorCode::Internal, Fate::NotApplied, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_lacks_something_is_an_error() {
        assert_eq!(
            read::<Nodes>(r#"{"nodes":[],"more":1}"#),
            Ok(Nodes::default())
        );
        let error = read::<Nodes>(r#"{"more":1}"#).unwrap_err();
        assert_eq!(
            (error.code, error.fate),
            (ErrorCode::Internal, Fate::NotApplied)
        );
        assert!(error.message.contains("nodes"), "{error}");
    }
}
