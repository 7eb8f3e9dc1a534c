//! The scenario in which a replica writes its rows anew under one data id.

use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::request::Batch;
use rangedb_engine::types::RangeId;

use super::{EFFORT, LEFT, machine};
use crate::sim::cluster::Look;
use crate::sim::faults::Order;
use crate::sim::operator;
use crate::sim::run::{POLL_INTERVAL, Story};
use crate::sim::runtime::SimRuntime;

/// Where the range is split, from right to left. Clients use keys on all sides.
const BORDERS: [[u8; 3]; 12] = [
    *b"ga0", *b"cr7", *b"cr6", *b"cr5", *b"cr4", *b"cr3", *b"cr2", *b"cr1", *b"cq5", *b"cq3",
    *b"cq1", *b"ca4",
];
/// A replica of each range moves from one of these machines to the other.
const FROM: u16 = 3;
const TO: u16 = 4;
/// How often a merge is ordered, at most: right after a power failure it may be refused.
const ORDERS: usize = 6;

fn users(looks: &[Look]) -> impl Iterator<Item = &Look> {
    looks.iter().filter(|look| !look.status.system)
}

fn begins(looks: &[Look], start: &[u8]) -> bool {
    users(looks).any(|look| look.status.route.keys.start == start)
}

impl Story {
    /// Moves the replicas that a machine has to another one; `false` if that takes too long.
    async fn move_all(self: &Rc<Story>) -> bool {
        for _ in 0..ORDERS {
            let here = |look: &&Look| machine(look) == FROM;
            let looks = self.cluster.looks();
            let ranges = users(&looks).filter(here);
            let ranges: Vec<RangeId> = ranges.map(|look| look.status.route.range).collect();
            for range in ranges {
                let order = Order::Move {
                    range: range.0,
                    from: FROM,
                    to: TO,
                    shard: 0,
                };
                operator::order(&self.cluster, order, 1).await;
            }
            let are_gone = |looks: &[Look]| !users(looks).any(|look| machine(look) == FROM);
            if self.until(POLL_INTERVAL, are_gone).await {
                return true;
            }
        }
        false
    }

    pub(super) async fn twelve_merges(self: &Rc<Story>) {
        /// Keys that no other client uses.
        const KEYS: [&str; 4] = ["ca3x", "cq2x", "cr2x", "cr6x"];
        self.stop_balancing().await;
        let client = self.client(101, &Rc::default());
        for key in KEYS {
            let batch = Batch::put(key.into(), key.into());
            drop(client.write(key.as_bytes(), batch, EFFORT).await);
        }
        for at in BORDERS {
            operator::order(&self.cluster, Order::Split { at }, 1).await;
        }
        if !self.move_all().await {
            return;
        }
        let (mut merged, mut parts, mut has_shrunk) = (0, 0, false);
        for border in BORDERS.iter().rev() {
            // The first range takes over one after the other.
            for _ in 0..ORDERS {
                if !begins(&self.cluster.looks(), border) {
                    break;
                }
                self.give(Order::Merge { at: *b"a00" });
                if self.random.once_in(3) {
                    let later = Duration::from_micros(self.random.below(300_000));
                    SimRuntime::sleep(later).await;
                    self.lose_power(TO).await;
                }
                self.until(POLL_INTERVAL, |looks| !begins(looks, border))
                    .await;
            }
            let looks = self.cluster.looks();
            merged += usize::from(!begins(&looks, border));
            let here = users(&looks)
                .find(|look| machine(look) == TO && look.status.route.keys.contains(b"a00"));
            let now = here.map_or(parts, |look| look.status.parts.1);
            has_shrunk |= now < parts;
            parts = now;
        }
        self.lose_power(TO).await;
        // What the machine holds is read if it leads.
        if let Some((_, range)) = self.leader_of(&LEFT).await {
            self.lead(range, TO).await;
        }
        let mut found = Vec::new();
        for key in KEYS {
            found.push(client.read_with_retries(key).await.flatten());
        }
        let is_found = |(key, found): (&str, &Option<String>)| found.as_deref() == Some(key);
        let are_found = KEYS.into_iter().zip(&found).all(is_found);
        if merged < BORDERS.len() || !has_shrunk || !are_found {
            self.seen.violation(format!(
                "{merged} of {} merges were made; rows were written anew: {has_shrunk}; found: {found:?}",
                BORDERS.len()
            ));
        }
    }
}
