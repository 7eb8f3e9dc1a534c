//! The scenarios in which a leader is deposed and does not know it.

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::request::Read;
use rangedb_engine::types::SYSTEM_RANGE;

use super::{KEY, machine};
use crate::sim::cluster::Look;
use crate::sim::executor::OnHost;
use crate::sim::faults::Order;
use crate::sim::operator;
use crate::sim::run::{POLL_INTERVAL, Story};
use crate::sim::runtime::SimRuntime;
use crate::sim::workload::number;

/// A group in which nothing happens sleeps after this time.
const ASLEEP_AFTER: Duration = Duration::from_millis(2_500);
/// A leader that was deposed knows it so long after it can be reached again.
const DEPOSED_WITHIN: Duration = Duration::from_secs(1);

/// So many orders are given, one after the other, until one is taken: a new manager has to be found by the node that
/// is asked, and has to know its nodes. All this time passes in any case, so that the old manager gives up what it
/// has begun, and its group sleeps.
const ORDERS_MAX: u32 = 20;
const ORDER_RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// The machine that leads the system range in the latest term.
fn system_leader(looks: &[Look]) -> Option<u16> {
    let leaders = looks
        .iter()
        .filter(|look| look.status.system && look.status.leads);
    leaders.max_by_key(|look| look.status.term).map(machine)
}

impl Story {
    pub(super) async fn sleeping_leader_removed(self: &Rc<Story>) {
        self.stop_balancing().await;
        SimRuntime::sleep(ASLEEP_AFTER).await;
        let Some(old) = system_leader(&self.cluster.looks()) else {
            return;
        };
        self.cut_off(old);
        let another_leads = |looks: &[Look]| system_leader(looks).is_some_and(|at| at != old);
        let is_deposed = self.until(POLL_INTERVAL, another_leads).await;
        let looks = self.cluster.looks();
        let holders = looks.iter().filter(|look| look.status.system);
        let holders: Vec<u16> = holders.map(machine).collect();
        let (Some(to), Some(by)) = (self.other_than(&holders), self.other_than(&[old])) else {
            return;
        };
        let (range, from) = (SYSTEM_RANGE.0, old);
        let order = Order::Move {
            range,
            from,
            to,
            shard: 0,
        };
        let mut is_moved = false;
        for _ in 0..ORDERS_MAX {
            is_moved = is_moved || operator::order(&self.cluster, order, by).await;
            SimRuntime::sleep(ORDER_RETRY_INTERVAL).await;
        }
        self.cluster.network.mend();
        SimRuntime::sleep(DEPOSED_WITHIN).await;
        let looks = self.cluster.looks();
        let mut leaders = looks
            .iter()
            .filter(|look| look.status.system && look.status.leads);
        let still_leads = leaders.any(|look| machine(look) == old);
        if !is_deposed || !is_moved || still_leads {
            self.seen.violation(format!(
                "machine {old} led the system range and was cut off; another leads: {is_deposed}, replica moved: \
                 {is_moved}; it leads at the end: {still_leads}"
            ));
        }
    }

    pub(super) async fn deposed_reader(self: &Rc<Story>) {
        // Rows are flushed meanwhile.
        SimRuntime::sleep(Duration::from_millis(300)).await;
        let Some((leader, _)) = self.leader_of(&KEY).await else {
            return;
        };
        let Some(node) = self.cluster.on(leader) else {
            return;
        };
        self.cut_off(leader);
        node.pause(Duration::from_millis(1_400)).await;
        for _ in 0..30 {
            let reads = (0..6).map(|register| self.read_at(leader, format!("cr{register}")));
            join_all(reads).await;
            SimRuntime::sleep(Duration::from_millis(5)).await;
        }
        self.cluster.network.mend();
        SimRuntime::sleep(Duration::from_millis(500)).await;
    }

    /// Reads a row at the first shard of a machine, if that serves it within a moment.
    async fn read_at(&self, machine: u16, key: String) {
        let Some(node) = self.cluster.on(machine) else {
            return;
        };
        let Some(shard) = node.shards().and_then(|shards| shards.first().cloned()) else {
            return;
        };
        let before = self.seen.rows.borrow().newest(&key);
        let row = key.clone();
        let read = OnHost::new(node.host(), async move {
            let mut waited = None;
            loop {
                let look = |found: Option<(&[u8], _)>| found.map(|(value, at)| (number(value), at));
                let read = match waited.take() {
                    None => shard.get(row.as_bytes(), None, look),
                    Some(waited) => shard.get_after(waited, row.as_bytes(), None, look),
                };
                match read.ok()? {
                    Read::Done(found) => return Some(found),
                    Read::Wait(wait) => {
                        shard.wait(wait, row.as_bytes(), None).await.ok()?;
                        waited = Some(wait);
                    }
                }
            }
        });
        let read = SimRuntime::timeout(Duration::from_millis(20), read).await;
        if let Ok(Some(found)) = read {
            let rows = self.seen.rows.borrow();
            rows.check_read(&self.seen, &key, before, found);
        }
    }
}
