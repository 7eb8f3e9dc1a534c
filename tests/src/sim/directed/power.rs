//! The scenarios in which the power of a single node fails: no other one has what it forgets.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::request::Batch;

use super::{BESIDE, EFFORT, KEY, LEFT, MOMENT, rights};
use crate::sim::cluster::Look;
use crate::sim::faults::Order;
use crate::sim::operator;
use crate::sim::run::{POLL_INTERVAL, Story};
use crate::sim::runtime::SimRuntime;

impl Story {
    pub(super) async fn power_at_birth(self: &Rc<Story>) {
        const SLOW_US: u64 = 20_000;
        let stop = Rc::new(Cell::new(false));
        operator::order(&self.cluster, Order::Split { at: BESIDE }, 1).await;
        let Some(node) = self.cluster.on(1) else {
            return;
        };
        node.platters()
            .for_each(|platter| platter.latency_max_us.set(SLOW_US));
        self.fill(&stop);
        SimRuntime::sleep(Duration::from_millis(self.random.between(50, 150))).await;
        self.give(Order::Split { at: KEY });
        let is_split = |looks: &[Look]| {
            let ends = |look: &Look| look.status.route.keys.end.as_deref() == Some(&KEY[..]);
            looks.iter().any(ends)
        };
        self.until(MOMENT, is_split).await;
        let later = Duration::from_micros(self.random.between(1_000, 8_000));
        SimRuntime::sleep(later).await;
        stop.set(true);
        self.lose_power(1).await;
    }

    pub(super) async fn power_over_slow_disk(self: &Rc<Story>) {
        const SLOW_US: u64 = 2_000_000;
        let Some(node) = self.cluster.on(1) else {
            return;
        };
        let slow_to = |latency_us: u64| {
            node.platters()
                .for_each(|platter| platter.latency_max_us.set(latency_us));
        };
        slow_to(SLOW_US);
        self.lose_power(1).await;
        // A node that does not lead again while its disk is slow is left so, and is found not to converge.
        if self.leader_of(&KEY).await.is_some() {
            slow_to(300);
        }
    }

    pub(super) async fn power_after_merge(self: &Rc<Story>) {
        /// Keys of the two ranges that no other client uses.
        const KEYS: [&str; 2] = ["cr0x", "cr3x"];
        let stop = Rc::default();
        let client = self.client(101, &stop);
        let write = async |value: &'static str| {
            let mut acknowledged = Vec::new();
            for key in KEYS {
                let batch = Batch::put(key.into(), value.into());
                let written = client.write(key.as_bytes(), batch, EFFORT).await;
                acknowledged.push(written.is_ok());
            }
            acknowledged
        };
        operator::order(&self.cluster, Order::Split { at: KEY }, 1).await;
        let is_led = |looks: &[Look]| rights(looks).any(|look| look.status.leads);
        let is_split = self.until(POLL_INTERVAL, is_led).await;
        write("before").await;
        self.give(Order::Merge { at: LEFT });
        let is_merged = self
            .until(MOMENT, |looks| rights(looks).next().is_none())
            .await;
        // The log says that the merge is committed when it says something else.
        let acknowledged = write("after").await;
        let later = Duration::from_micros(self.random.below(20_000));
        SimRuntime::sleep(later).await;
        self.lose_power(1).await;
        let (client, mut found) = (self.client(102, &Rc::default()), Vec::new());
        for key in KEYS {
            found.push(client.read_with_retries(key).await.flatten());
        }
        // A write that was given up may be applied or not.
        let is_found = |(found, is_acknowledged): (&Option<String>, &bool)| {
            !is_acknowledged || found.as_deref() == Some("after")
        };
        let are_found = found.iter().zip(&acknowledged).all(is_found);
        if !is_split || !is_merged || !are_found {
            self.seen.violation(format!(
                "the power fails after a merge: split: {is_split}, merged: {is_merged}, acknowledged: {acknowledged:?}, found: {found:?}"
            ));
        }
    }

    pub(super) async fn power_before_merge_is_marked(self: &Rc<Story>) {
        /// More than a lone voter takes to lead and to come to its next entry.
        const SLOW_US: u64 = 5_000;
        operator::order(&self.cluster, Order::Split { at: KEY }, 1).await;
        let is_led = |looks: &[Look]| rights(looks).any(|look| look.status.leads);
        let is_split = self.until(POLL_INTERVAL, is_led).await;
        self.give(Order::Merge { at: LEFT });
        let is_merged = self
            .until(MOMENT, |looks| rights(looks).next().is_none())
            .await;
        let Some(node) = self.cluster.on(1) else {
            return;
        };
        let slow_reads_to = |slow_us: u64| {
            node.platters()
                .for_each(|platter| platter.slow_reads_us.set(slow_us));
        };
        slow_reads_to(self.random.between(SLOW_US / 2, SLOW_US));
        self.lose_power(1).await;
        slow_reads_to(0);
        let fatal = node.fatal();
        if !is_split || !is_merged || fatal.is_some() {
            self.seen.violation(format!(
                "the power fails before a merge is marked: split: {is_split}, merged: {is_merged}, then: {fatal:?}"
            ));
        }
    }
}
