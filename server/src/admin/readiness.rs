//! `/readyz`: whether the node serves, and if not, why.

use std::fmt::Write as _;
use std::sync::PoisonError;

use hyper::StatusCode;
use rangedb_engine::shard::Availability;

use super::{Node, Phase, Serving};
use crate::handler::status::refusals;
use crate::probe::ShardReport;

/// At most so many ranges are named.
const NAMED_MAX: usize = 10;

/// What a shard says of the ranges that it leads or follows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Unserved {
    /// Ranges without a majority.
    lacking: Vec<u64>,
    /// Ranges that have stopped, since their replicas differ.
    halted: Vec<u64>,
    /// Whether operators have had the node leave.
    leaves: bool,
}

impl Unserved {
    fn of(report: &ShardReport) -> Unserved {
        let mut unserved = Unserved {
            leaves: report.status.leaves,
            ..Unserved::default()
        };
        for range in &report.status.ranges {
            let id = range.route.range.0;
            match range.availability {
                Availability::Available => {}
                Availability::NoQuorum => unserved.lacking.push(id),
                Availability::Halted => unserved.halted.push(id),
            }
        }
        unserved
    }
}

/// The first reason why a node with these shards is not ready; `None` if there is none. A shard that
/// does not answer is `None`.
fn obstacle(shards: &[Option<Unserved>]) -> Option<String> {
    let silent = shards.iter().position(Option::is_none);
    if let Some(shard) = silent {
        return Some(format!("shard {shard} does not answer"));
    }
    if shards.iter().flatten().any(|shard| shard.leaves) {
        let why =
            "draining: an operator has had the node leave; `rangedb node undrain` takes that back";
        return Some(why.to_owned());
    }
    let all = |of: fn(&Unserved) -> &Vec<u64>| {
        let ids = shards.iter().flatten().flat_map(of).copied();
        let mut ids: Vec<u64> = ids.collect();
        ids.sort_unstable();
        ids
    };
    let lacking = all(|shard| &shard.lacking);
    if !lacking.is_empty() {
        return Some(format!("no majority for {}", named(&lacking)));
    }
    let halted = all(|shard| &shard.halted);
    let why = "its replicas hold different rows, and no majority agrees";
    (!halted.is_empty()).then(|| format!("stopped: {}: {why}", named(&halted)))
}

fn named(ids: &[u64]) -> String {
    let shown: Vec<String> = ids.iter().take(NAMED_MAX).map(u64::to_string).collect();
    let mut text = format!("range {}", shown.join(", "));
    if ids.len() > NAMED_MAX {
        // Writing to a string cannot fail.
        let _ = write!(text, " and {} more", ids.len() - NAMED_MAX);
    }
    text
}

/// The refusal of this node by others.
struct Refused {
    /// Whether so many nodes refuse it that the rest has no majority.
    by_most: bool,
    reason: String,
}

impl Serving {
    fn refused(&self) -> Option<Refused> {
        let refused = self.peers.refused_by();
        refusals(&refused).map(|reason| Refused {
            by_most: refused.len() * 2 >= self.peers.addresses().len(),
            reason,
        })
    }

    fn obstacle(&self, reports: &[Option<ShardReport>]) -> Option<String> {
        let shards = reports
            .iter()
            .map(|report| report.as_ref().map(Unserved::of));
        obstacle(&Vec::from_iter(shards))
    }
}

impl Node {
    /// The answer of `/readyz`.
    pub async fn readiness(&self) -> (StatusCode, String) {
        let reports = match self.serving.get() {
            Some(serving) if self.phase() == Phase::Ready => serving.reports().await,
            _ => Vec::new(),
        };
        self.readiness_by(&reports)
    }

    /// The same, by reports that the shards have given.
    pub(super) fn readiness_by(&self, reports: &[Option<ShardReport>]) -> (StatusCode, String) {
        let not_ready = |why: String| (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
        if matches!(self.phase(), Phase::Leaving | Phase::ShuttingDown) {
            return not_ready("stopping: the node was told to stop".to_owned());
        }
        let Some(serving) = self.serving.get() else {
            return not_ready(self.waits());
        };
        if self.phase() != Phase::Ready {
            return not_ready("starting: ranges are being recovered".to_owned());
        }
        let refused = serving.refused();
        match (refused, serving.obstacle(reports)) {
            (Some(refused), _) if refused.by_most => not_ready(refused.reason),
            (_, Some(why)) => not_ready(why),
            (Some(refused), None) => (StatusCode::OK, format!("ready; {}\n", refused.reason)),
            (None, None) => (StatusCode::OK, "ready\n".to_owned()),
        }
    }

    /// What a node without shards waits for.
    fn waits(&self) -> String {
        let waits_for = self
            .waits_for
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if waits_for.is_empty() {
            "starting: the data folder is being opened".to_owned()
        } else {
            format!("waiting for a place in the cluster: {waits_for}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_if_all_its_ranges_are_served() {
        let shard = |lacking: &[u64], halted: &[u64]| {
            Some(Unserved {
                lacking: lacking.to_vec(),
                halted: halted.to_vec(),
                leaves: false,
            })
        };
        assert_eq!(obstacle(&[shard(&[], &[]), shard(&[], &[])]), None);
        let silent = obstacle(&[shard(&[2], &[]), None]);
        assert_eq!(silent.as_deref(), Some("shard 1 does not answer"));
        let lacking = obstacle(&[shard(&[7], &[]), shard(&[2], &[3])]);
        assert_eq!(lacking.as_deref(), Some("no majority for range 2, 7"));
        let halted = obstacle(&[shard(&[], &[3])]).expect("an obstacle");
        assert!(halted.starts_with("stopped: range 3: "), "{halted}");
        let mut leaves = shard(&[7], &[]);
        leaves.iter_mut().for_each(|shard| shard.leaves = true);
        let leaves = obstacle(&[leaves]).expect("an obstacle");
        assert!(leaves.starts_with("draining: "), "{leaves}");
        let many: Vec<u64> = (1..=12).collect();
        let many = obstacle(&[shard(&many, &[])]).expect("an obstacle");
        assert!(many.ends_with("9, 10 and 2 more"), "{many}");
    }

    #[tokio::test]
    async fn a_node_without_shards_says_what_it_waits_for() {
        let node = Node::new(crate::node_settings::Settings::of_test());
        let (status, why) = node.readiness().await;
        assert_eq!((status.as_u16(), why.starts_with("starting")), (503, true));
        node.wait_for("nobody answers".to_owned());
        let (_, why) = node.readiness().await;
        assert!(why.ends_with("cluster: nobody answers\n"), "{why}");
        node.enter(Phase::ShuttingDown);
        let (status, why) = node.readiness().await;
        assert_eq!(
            (status.as_u16(), why.starts_with("stopping: ")),
            (503, true)
        );
    }
}
