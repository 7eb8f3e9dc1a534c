//! The history of all nodes in one. A node keeps no history but its own, so each of them is asked, and their work
//! is summed up: the histograms of latencies are added, not the quantiles. `rangedb history` and the page show it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use rangedb_client::Error;
use rangedb_client::admin::{Admin, Node, NodeEvent, NodeHistory, Period, Step};
use serde::Serialize;

use crate::history::record::{HOUR_MS, MINUTE_MS, Work};

/// A history that begins earlier than this has hours instead of minutes.
const MINUTES_MAX: Duration = Duration::from_hours(24);
/// No node keeps anything older.
const HOURS_MAX: Duration = Duration::from_hours(90 * 24);
/// So many minutes or hours are asked for at once: their histograms fit into one reply, however wide they are.
const PART_MINUTES: u64 = 60;

/// So many nodes are asked at once: the histograms of a day take megabytes until they are added.
const ASKED_AT_ONCE: usize = 4;

/// The histories of all nodes in one.
#[derive(Debug, Default, Serialize)]
pub struct ClusterHistory {
    /// The nodes whose histories it has.
    pub nodes: Vec<u64>,
    /// Those that have not told theirs.
    pub missing_nodes: Vec<MissingNode>,
    /// Why it is not known which nodes there are, so that it is the history of one node only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes_unknown: Option<String>,
    /// The work of each minute. Empty if the history has hours.
    pub minutes: Vec<Period>,
    /// The work of each hour. Empty if the history has minutes.
    pub hours: Vec<Period>,
    /// Oldest first.
    pub events: Vec<NodeEvent>,
    /// How many rows were not kept.
    pub dropped: u64,
}

/// A node that has not told its history.
#[derive(Debug, Serialize)]
pub struct MissingNode {
    /// Its id.
    pub node: u64,
    /// Where it was asked.
    pub address: String,
    /// Why it has not told it.
    pub reason: String,
}

/// The part of the past that all nodes are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Past {
    /// The earliest time, in milliseconds since 1970.
    pub from_ms: u64,
    /// The latest time.
    pub to_ms: u64,
    /// Whether its work is told by the minute or by the hour.
    pub step: Step,
}

impl Past {
    /// The part that begins and ends so long ago; without an end, now.
    pub fn ago(from: Duration, to: Option<Duration>) -> Past {
        let now = now();
        let ago = |time: Duration| now.saturating_sub(time).as_millis() as u64;
        Past {
            from_ms: ago(from),
            // A node whose clock is ahead tells what it did just now, too.
            to_ms: to.map_or(u64::MAX, ago),
            step: match from > MINUTES_MAX {
                true => Step::Hour,
                false => Step::Minute,
            },
        }
    }

    /// The part between two times, or before or after one of them, without what is too old to be kept.
    pub fn between((from_ms, to_ms): (Option<u64>, Option<u64>), step: Step) -> Past {
        let kept = match step {
            Step::Minute => MINUTES_MAX,
            Step::Hour => HOURS_MAX,
        };
        let oldest = now().saturating_sub(kept).as_millis() as u64;
        Past {
            from_ms: from_ms.unwrap_or_default().max(oldest),
            to_ms: to_ms.unwrap_or(u64::MAX),
            step,
        }
    }

    /// Parts of it whose answers are short enough for one reply each. The last one has the end.
    fn parts(self) -> impl Iterator<Item = (u64, u64)> {
        let len = match self.step {
            Step::Minute => PART_MINUTES * MINUTE_MS,
            Step::Hour => PART_MINUTES * HOUR_MS,
        };
        let last = self.to_ms.min(now().as_millis() as u64);
        let starts = (self.from_ms..=last.max(self.from_ms)).step_by(len as usize);
        starts.map(move |from| match from.saturating_add(len) > last {
            true => (from, self.to_ms),
            false => (from, from + len - 1),
        })
    }

    /// The history of one node in this time, with histograms, from a node that is this one.
    ///
    /// # Errors
    /// It does not answer, or is another node.
    pub async fn ask(self, admin: &Admin, node: u64) -> Result<NodeHistory, Error> {
        let mut all = NodeHistory::default();
        for part in self.parts() {
            let told = admin.history_with_histograms(node, part, self.step).await?;
            all.node = told.node;
            all.minutes.extend(told.minutes);
            all.hours.extend(told.hours);
            all.events.extend(told.events);
            all.dropped = told.dropped;
        }
        Ok(all)
    }
}

fn now() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default()
}

impl ClusterHistory {
    /// The history of the one node that answers, since nobody says which others there are.
    pub fn of_one(told: NodeHistory, why: String) -> ClusterHistory {
        ClusterHistory {
            nodes: vec![told.node],
            nodes_unknown: Some(why),
            minutes: told.minutes,
            hours: told.hours,
            events: told.events,
            dropped: told.dropped,
            ..ClusterHistory::default()
        }
    }

    /// The histories of these nodes, which `tell` gets with histograms, or the reason why it does not.
    pub async fn of_all<'a, A>(
        nodes: &'a [Node],
        step: Step,
        tell: impl Fn(&'a Node) -> A,
    ) -> ClusterHistory
    where
        A: Future<Output = Result<NodeHistory, String>>,
    {
        let mut all = ClusterHistory::default();
        let mut works: BTreeMap<u64, Work> = BTreeMap::new();
        let ask = |node: &'a Node| {
            let told = tell(node);
            async move { (node, told.await) }
        };
        let mut waiting = nodes.iter();
        let mut asked: FuturesOrdered<_> = waiting.by_ref().take(ASKED_AT_ONCE).map(ask).collect();
        while let Some((node, told)) = asked.next().await {
            asked.extend(waiting.next().map(ask));
            let told = match told {
                Ok(told) => told,
                Err(reason) => {
                    all.missing_nodes.push(MissingNode {
                        node: node.id,
                        address: node.address.clone(),
                        reason,
                    });
                    continue;
                }
            };
            all.nodes.push(node.id);
            all.dropped += told.dropped;
            all.events.extend(told.events);
            for (number, period) in told.minutes.into_iter().chain(told.hours).enumerate() {
                // The histograms of a day are many: others have their turn meanwhile.
                if (number as u64).is_multiple_of(PART_MINUTES) {
                    tokio::task::yield_now().await;
                }
                works.entry(period.t).or_default().add(&period.into());
            }
        }
        let periods = works.iter().map(|(t, work)| work.period(*t)).collect();
        match step {
            Step::Minute => all.minutes = periods,
            Step::Hour => all.hours = periods,
        }
        all.events.sort_by_key(|event| event.t);
        all
    }

    /// The same, if any node has told its history.
    ///
    /// # Errors
    /// None has; the text says why.
    pub fn told(self) -> Result<ClusterHistory, String> {
        match (self.nodes.is_empty(), self.missing_nodes.first()) {
            (true, Some(MissingNode { reason, .. })) => {
                Err(format!("no node tells its history: {reason}"))
            }
            (true, None) => Err("no node tells its history: there is none".to_owned()),
            _ => Ok(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_past_is_asked_for_in_parts_without_a_gap() {
        let hours = Duration::from_hours(1);
        for (from, to) in [
            (hours * 24, None),
            (hours * 24 * 90, None),
            (hours * 3, Some(hours)),
            (Duration::from_secs(1), None),
        ] {
            let past = Past::ago(from, to);
            let parts: Vec<(u64, u64)> = past.parts().collect();
            assert_eq!(parts[0].0, past.from_ms);
            assert_eq!(parts[parts.len() - 1].1, past.to_ms);
            assert!(parts.is_sorted_by(|a, b| a.1 + 1 == b.0), "{parts:?}");
            assert!((1..=37).contains(&parts.len()), "{parts:?}");
        }
    }

    #[test]
    fn nobody_is_asked_for_what_no_node_keeps() {
        for step in [Step::Minute, Step::Hour] {
            let past = Past::between((None, None), step);
            assert!((24..=37).contains(&past.parts().count()), "{past:?}");
            let late = Past::between((Some(u64::MAX - 5), None), step);
            assert_eq!((late.from_ms, late.to_ms), (u64::MAX - 5, u64::MAX));
        }
    }

    fn told(node: u64, minutes: &[u64], events: &[u64]) -> NodeHistory {
        let mut told = NodeHistory::default();
        (told.node, told.dropped) = (node, 1);
        for t in minutes {
            let mut work = Work::default();
            work.operations.insert("get".to_owned(), node);
            work.latency.insert(node * 100, node);
            let mut period = work.period(*t);
            period.latency_us = work.latency;
            told.minutes.push(period);
        }
        for t in events {
            let mut event = NodeEvent::default();
            (event.t, event.node) = (*t, node);
            told.events.push(event);
        }
        told
    }

    #[tokio::test]
    async fn work_is_summed_up_and_who_tells_nothing_is_named() {
        let nodes = [1, 2, 3].map(|id| {
            let mut node = Node::default();
            (node.id, node.address) = (id, format!("n{id}:1"));
            node
        });
        let tell = |node: &Node| {
            let told = match node.id {
                1 => Ok(told(1, &[0, MINUTE_MS], &[5, 9])),
                2 => Err("it sleeps".to_owned()),
                id => Ok(told(id, &[MINUTE_MS], &[7])),
            };
            async { told }
        };
        let all = ClusterHistory::of_all(&nodes, Step::Minute, tell).await;
        let all = all.told().expect("two tell");
        assert_eq!((&all.nodes, all.dropped), (&vec![1, 3], 2));
        let missing = &all.missing_nodes[0];
        assert_eq!((missing.node, &*missing.address), (2, "n2:1"));
        let minutes = all.minutes.iter();
        let minutes: Vec<_> = minutes.map(|at| (at.t, at.ops, at.p50_us)).collect();
        assert_eq!(minutes, [(0, 1, 100), (MINUTE_MS, 4, 300)]);
        let events: Vec<_> = all.events.iter().map(|at| (at.t, at.node)).collect();
        assert_eq!(events, [(5, 1), (7, 3), (9, 1)]);
        let nobody = ClusterHistory::of_all(&nodes[1..2], Step::Minute, tell).await;
        let why = nobody.told().expect_err("nobody tells");
        assert!(why.ends_with(": it sleeps"), "{why}");
    }
}
