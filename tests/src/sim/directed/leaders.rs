//! The scenarios in which a leader is deposed and does not know it.

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::request::Read;
use rangedb_engine::shard::RangeStatus;
use rangedb_engine::types::{RangeId, SYSTEM_RANGE};

use super::{KEY, holds, machine};
use crate::sim::cluster::Look;
use crate::sim::executor::OnHost;
use crate::sim::faults::Order;
use crate::sim::operator;
use crate::sim::run::{POLL_INTERVAL, Story};
use crate::sim::runtime::SimRuntime;
use crate::sim::workload::number;

/// A group in which nothing happens sleeps after this time.
const ASLEEP_AFTER: Duration = Duration::from_millis(2_500);
/// A manager that reaches nobody gives up what it has begun after this time, and its group sleeps.
const QUIET_AFTER: Duration = Duration::from_secs(10);
/// A leader that was deposed knows it so long after it can be reached again: from the response to a heartbeat, if a
/// replica that it knows is still one.
const DEPOSED_WITHIN: Duration = Duration::from_secs(1);
/// A replica that is no member is gone so long after it can be reached again: the response to a report removes it.
const REMOVED_WITHIN: Duration = Duration::from_secs(6);

/// So often is an order repeated that is refused: a new manager has to be found by the node that is asked, and has to
/// know its nodes.
const ORDERS_MAX: u32 = 40;
const ORDER_RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// The machine that leads a range in the latest term.
fn leader_in(looks: &[Look], range: RangeId) -> Option<u16> {
    let leaders = looks
        .iter()
        .filter(|look| look.status.route.range == range && look.status.leads);
    leaders.max_by_key(|look| look.status.term).map(machine)
}

impl Story {
    pub(super) async fn sleeping_leader_removed(self: &Rc<Story>) {
        self.stop_balancing().await;
        SimRuntime::sleep(ASLEEP_AFTER).await;
        let looks = self.cluster.looks();
        let users = looks.iter().find(|look| holds(look, &KEY));
        let range = match (users, self.random.once_in(3)) {
            (Some(look), true) => look.status.route.range,
            _ => SYSTEM_RANGE,
        };
        let Some(old) = leader_in(&looks, range) else {
            return;
        };
        self.cut_off(old);
        let another_leads = |looks: &[Look]| leader_in(looks, range).is_some_and(|at| at != old);
        let is_deposed = self.until(POLL_INTERVAL, another_leads).await;
        let mut members = self.holders(range);
        members.sort_by_key(|member| *member != old);
        let all_move = self.random.once_in(2);
        let moved = if all_move { members.len() } else { 1 };
        let mut are_moved = true;
        for from in members.iter().take(moved) {
            are_moved &= self.move_replica(*from, range, &members).await;
        }
        if self.random.once_in(3) {
            self.lose_power(old).await;
        }
        SimRuntime::sleep(QUIET_AFTER).await;
        self.cluster.network.mend();
        SimRuntime::sleep(DEPOSED_WITHIN).await;
        let looks = self.cluster.looks();
        let still_leads = |look: &Look| {
            let RangeStatus { route, leads, .. } = &look.status;
            machine(look) == old && route.range == range && *leads
        };
        let still_leads = !all_move && looks.iter().any(still_leads);
        SimRuntime::sleep(REMOVED_WITHIN).await;
        let is_there = self.holders(range).contains(&old);
        if !is_deposed || !are_moved || still_leads || is_there {
            self.seen.violation(format!(
                "machine {old} led range {range} and was cut off; another leads: {is_deposed}, {moved} replicas \
                 moved: {are_moved}; it leads afterwards: {still_leads}, has a replica at the end: {is_there}"
            ));
        }
    }

    /// The machines that have a replica of a range.
    fn holders(&self, range: RangeId) -> Vec<u16> {
        let looks = self.cluster.looks();
        let holders = looks.iter().filter(|look| look.status.route.range == range);
        holders.map(machine).collect()
    }

    /// Moves a member of a range to a machine that has no replica of it and is none of the first `members`; gives
    /// whether that was done. If the member leads, another one leads first.
    async fn move_replica(&self, from: u16, range: RangeId, members: &[u16]) -> bool {
        let (range_id, shard) = (range.0, 0);
        let taken = [members, &self.holders(range)].concat();
        let (Some(to), Some(by)) = (self.other_than(&taken), self.other_than(&members[..1])) else {
            return false;
        };
        for _ in 0..ORDERS_MAX {
            let order = match leader_in(&self.cluster.looks(), range) {
                Some(leader) if leader == from => Order::Lead {
                    range: range_id,
                    to: None,
                },
                _ => Order::Move {
                    range: range_id,
                    from,
                    to,
                    shard,
                },
            };
            operator::order(&self.cluster, order, by).await;
            SimRuntime::sleep(ORDER_RETRY_INTERVAL).await;
            if self.holders(range).contains(&to) {
                return true;
            }
        }
        false
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
