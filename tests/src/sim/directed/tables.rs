//! The scenarios in which the disk of a machine's tables has a fault.

use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::request::Batch;

use super::{BESIDE, EFFORT, KEY, LEFT, MOMENT, holds, machine, rights};
use crate::sim::cluster::Look;
use crate::sim::executor;
use crate::sim::faults::Order;
use crate::sim::node::SimNode;
use crate::sim::operator;
use crate::sim::run::{POLL_INTERVAL, Story};
use crate::sim::runtime::SimRuntime;

/// How many times [`WAIT_TIMEOUT`](super::WAIT_TIMEOUT) it may take until a replica is given up: others may
/// have to be replaced before.
const TIMEOUTS_TO_GIVE_UP: usize = 4;
/// How many times it may take until there is a fresh one: the node may keep away from new ones for a minute, since its
/// compactions failed.
const TIMEOUTS_TO_REPLACE: usize = 10;
/// How many leaders get unreadable blocks, one after the other.
const LEADERS_DAMAGED: usize = 2;
/// How many clients write to a single node before its tables take nothing, while they take nothing, and after
/// that. The network of one of them may be so bad that it does not know the fate of its write.
const WRITERS: u32 = 10;

fn is_stuck(node: &SimNode) -> bool {
    let shards = node.shards();
    let mut shards = shards.iter().flat_map(|shards| shards.iter());
    shards.any(|shard| executor::current().on_host(node.host(), || shard.status().lsm.stuck))
}

fn is_full(node: &SimNode) -> bool {
    let shards = node.shards();
    let mut shards = shards.iter().flat_map(|shards| shards.iter());
    shards.any(|shard| executor::current().on_host(node.host(), || shard.status().disk_full))
}

impl Story {
    /// Looks for several times [`WAIT_TIMEOUT`](super::WAIT_TIMEOUT) until something is so.
    async fn until_in(&self, timeouts: usize, is_so: impl Fn(&[Look]) -> bool) -> bool {
        for _ in 0..timeouts {
            if self.until(POLL_INTERVAL, &is_so).await {
                return true;
            }
        }
        false
    }

    pub(super) async fn unreadable_blocks(self: &Rc<Story>) {
        for _ in 0..LEADERS_DAMAGED {
            // Rows are flushed meanwhile.
            SimRuntime::sleep(Duration::from_millis(300)).await;
            let Some((leader, range)) = self.leader_of(&KEY).await else {
                return;
            };
            let Some(node) = self.cluster.on(leader) else {
                return;
            };
            let replica = |looks: &[Look]| {
                let here =
                    |look: &&Look| machine(look) == leader && look.status.route.range == range;
                looks.iter().find(here).map(|look| look.status.replica)
            };
            let before = replica(&self.cluster.looks());
            let is_given_up = |looks: &[Look]| replica(looks) != before;
            let is_replaced = |looks: &[Look]| {
                let now = replica(looks);
                now.is_some() && now != before
            };
            node.table_disks().for_each(|disk| disk.damage(|| u8::MAX));
            let given_up = self.until_in(TIMEOUTS_TO_GIVE_UP, is_given_up).await;
            // A compaction may have met a block before any read did. Then the shard has handed its leaderships
            // over, and nobody reads here.
            let leads = |look: &Look| look.status.leads && look.status.route.range == range;
            let looks = self.cluster.looks();
            let led_here = looks
                .iter()
                .any(|look| leads(look) && machine(look) == leader);
            node.table_disks().for_each(|disk| disk.mend());
            let replaced = !given_up || self.until_in(TIMEOUTS_TO_REPLACE, is_replaced).await;
            if (!given_up && led_here) || !replaced || node.fatal().is_some() {
                let what = format!(
                    "machine {leader} cannot read its blocks: replica {before:?} of range {range} is given up: \
                     {given_up}, leads: {led_here}, is replaced if given up: {replaced}, {:?}",
                    node.fatal()
                );
                self.seen.violation(what);
            }
        }
    }

    pub(super) async fn removed_while_applying(self: &Rc<Story>) {
        let looks = self.cluster.looks();
        let manages = |look: &&Look| look.status.system && look.status.leads;
        let manager = looks.iter().find(manages).map(machine);
        let Some((_, range)) = self.leader_of(&BESIDE).await else {
            return;
        };
        let is_here = |look: &&Look| look.status.route.range == range;
        let holders: Vec<u16> = looks.iter().filter(is_here).map(machine).collect();
        // Where the manager is, nothing could be ordered.
        let victim = holders.iter().find(|holder| Some(**holder) != manager);
        let free = (1..=self.cluster.machines()).find(|other| !holders.contains(other));
        let (Some(victim), Some(free)) = (victim.copied(), free) else {
            return;
        };
        let Some(node) = self.cluster.on(victim) else {
            return;
        };
        let other = holders.iter().find(|holder| **holder != victim);
        if !self.lead(range, victim).await {
            return;
        }
        node.table_disks().for_each(|disk| disk.stuck.set(true));
        let stop = Rc::default();
        self.fill(&stop);
        // By then its memtables are full.
        SimRuntime::sleep(Duration::from_millis(self.random.between(500, 1_500))).await;
        if let Some(other) = other {
            self.lead(range, *other).await;
        }
        self.give(Order::Move {
            range: range.0,
            from: victim,
            to: free,
            shard: 0,
        });
        let is_gone = |looks: &[Look]| {
            let mut of_range = looks.iter().filter(is_here);
            of_range.all(|look| machine(look) != victim)
        };
        let is_gone = self.until(POLL_INTERVAL, is_gone).await;
        node.table_disks().for_each(|disk| disk.stuck.set(false));
        SimRuntime::sleep(Duration::from_millis(500)).await;
        stop.set(true);
        if !is_gone || node.fatal().is_some() {
            let what = format!(
                "machine {victim} applies nothing, and its replica of range {range} is not moved: {:?}",
                node.fatal()
            );
            self.seen.violation(what);
        }
    }

    pub(super) async fn failing_compactions(self: &Rc<Story>) {
        let Some((leader, range)) = self.leader_of(&BESIDE).await else {
            return;
        };
        let Some(node) = self.cluster.on(leader) else {
            return;
        };
        node.table_disks()
            .for_each(|disk| disk.compactions_fail.set(true));
        let stop = Rc::default();
        self.fill(&stop);
        let is_led_elsewhere = |looks: &[Look]| {
            let leads = |look: &Look| look.status.leads && holds(look, &BESIDE);
            looks
                .iter()
                .any(|look| leads(look) && machine(look) != leader)
        };
        let is_stuck = self.until(POLL_INTERVAL, |_| is_stuck(&node)).await;
        let has_moved = self.until(POLL_INTERVAL, is_led_elsewhere).await;
        if !is_stuck || !has_moved {
            self.seen.violation(format!(
                "compactions fail on machine {leader}, which leads range {range}: its tables are full: \
                 {is_stuck}, another one leads: {has_moved}"
            ));
        }
        stop.set(true);
        node.table_disks()
            .for_each(|disk| disk.compactions_fail.set(false));
    }

    pub(super) async fn failing_compactions_alone(self: &Rc<Story>) {
        let Some(node) = self.cluster.on(1) else {
            return;
        };
        let fail = |fails| {
            node.table_disks()
                .for_each(|disk| disk.compactions_fail.set(fails));
        };
        let stop = Rc::default();
        let write = async |number: u32, value: &'static str| {
            let client = self.client(number, &stop);
            let batch = Batch::put("d99".into(), value.into());
            client.write(b"d99", batch, EFFORT).await
        };
        let mut before = false;
        for number in 0..WRITERS {
            before = before || write(130 + number, "before").await.is_ok();
        }
        fail(true);
        self.fill(&stop);
        let is_stuck = self.until(POLL_INTERVAL, |_| is_stuck(&node)).await;
        let mut refused = false;
        for number in 0..WRITERS {
            refused = refused || matches!(write(110 + number, "refused").await, Err(false));
        }
        let reader = self.client(102, &stop);
        let read = reader.read_with_retries("d99").await.flatten();
        fail(false);
        let mut written = false;
        for number in 0..WRITERS {
            written = written || write(120 + number, "after").await.is_ok();
        }
        stop.set(true);
        let is_read = read.as_deref() == Some("before");
        if !before || !is_stuck || !refused || !is_read || !written {
            self.seen.violation(format!(
                "compactions fail: written before: {before}, the tables are full: {is_stuck}, writes are \
                 refused: {refused}, found: {read:?}, written after it was mended: {written}"
            ));
        }
    }

    pub(super) async fn hanging_flush(self: &Rc<Story>) {
        let Some((leader, right)) = self.split_apart().await else {
            return;
        };
        let Some((_, left)) = self.leader_of(&LEFT).await else {
            return;
        };
        let (Some(node), Some(other)) = (self.cluster.on(leader), self.other_than(&[leader]))
        else {
            return;
        };
        if self.random.once_in(2) && !self.lead(right, leader).await {
            return;
        }
        let hang = |hangs| node.table_disks().for_each(|disk| disk.stuck.set(hangs));
        let is_frozen = |looks: &[Look]| rights(looks).any(|look| look.status.frozen.is_some());
        let at_freeze = self.random.once_in(2);
        hang(!at_freeze);
        self.give(Order::Merge { at: LEFT });
        if at_freeze {
            self.until(MOMENT, is_frozen).await;
            hang(true);
        }
        let is_merged = |looks: &[Look]| rights(looks).next().is_none();
        let is_merged = self.until(POLL_INTERVAL, is_merged).await;
        let mut has_moved = false;
        for _ in 0..3 {
            has_moved = has_moved || self.lead(left, other).await;
        }
        hang(false);
        SimRuntime::sleep(Duration::from_millis(500)).await;
        if !is_merged || !has_moved {
            self.seen.violation(format!(
                "the tables' disk of machine {leader} hangs in a merge of range {left}: the ranges are merged: \
                 {is_merged}, the left one takes another order: {has_moved}"
            ));
        }
    }

    pub(super) async fn merges_on_full_disks(self: &Rc<Story>) {
        /// Keys of the three ranges that no other client uses.
        const KEYS: [&str; 3] = ["cr0x", "cr2x", "cr3x"];
        let stop = Rc::default();
        let client = self.client(101, &stop);
        for key in KEYS {
            let batch = Batch::put(key.into(), key.into());
            drop(client.write(key.as_bytes(), batch, EFFORT).await);
        }
        for at in [BESIDE, *b"cr3", KEY] {
            operator::order(&self.cluster, Order::Split { at }, 1).await;
        }
        let machines = (1..=self.cluster.machines()).filter_map(|machine| self.cluster.on(machine));
        let machines: Vec<Rc<SimNode>> = machines.collect();
        let disks = || machines.iter().flat_map(|node| node.table_disks());
        disks().for_each(|disk| disk.full.set(true));
        self.fill(&stop);
        let are_full = |_: &[Look]| machines.iter().all(|node| is_full(node));
        let are_full = self.until(POLL_INTERVAL, are_full).await;
        stop.set(true);
        let begin = |looks: &[Look], start: &[u8]| {
            let mut users = looks.iter().filter(|look| !look.status.system);
            users.any(|look| look.status.route.keys.start == start)
        };
        let mut merged = Vec::new();
        for (at, right) in [(KEY, b"cr3"), (LEFT, &KEY)] {
            self.give(Order::Merge { at });
            let is_merged = |looks: &[Look]| !begin(looks, right);
            merged.push(self.until(POLL_INTERVAL, is_merged).await);
        }
        let is_still_full = machines.iter().any(|node| is_full(node));
        machines.iter().for_each(|node| node.crash());
        SimRuntime::sleep(Duration::from_millis(50)).await;
        for node in &machines {
            self.start(node, None).await;
        }
        disks().for_each(|disk| disk.full.set(false));
        let (client, mut found) = (self.client(102, &Rc::default()), Vec::new());
        for key in KEYS {
            found.push(client.read_with_retries(key).await.flatten());
        }
        let is_found = |(key, found): (&str, &Option<String>)| found.as_deref() == Some(key);
        let are_found = KEYS.into_iter().zip(&found).all(is_found);
        if !are_full || !is_still_full || merged != [true, true] || !are_found {
            self.seen.violation(format!(
                "two merges on full disks: full: {are_full}, also at the end: {is_still_full}, merged: {merged:?}, \
                 found after the power had failed: {found:?}"
            ));
        }
    }
}
