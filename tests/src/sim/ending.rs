//! The end of a run: all faults end, all nodes run, and the cluster must come to rest. Then every
//! acknowledged write must be there, and every range must have all its replicas.

use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::cluster::{ClusterRequest, ClusterResponse};
use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::types::NodeId;

use super::executor;
use super::faults::Order;
use super::node::SimNode;
use super::operator;
use super::run::{POLL_INTERVAL, START_TIMEOUT, Story};
use super::runtime::SimRuntime;
use super::sim_env;
use crate::invariants;

/// After the faults, a client ends within this time: one try, and one write until it gives up.
const CLIENTS_END_TIMEOUT: Duration = Duration::from_secs(14);
/// How long the replicas may take to become equal.
const CONVERGENCE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the ranges may take after that to regain all their replicas. A node whose disk was slow gets none
/// for a minute.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(90);
/// How often the check looks for missing replicas.
const REPLICATION_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How long a node does not hear another one.
const DEAF: Duration = Duration::from_secs(3);
/// How often the check looks for leaders meanwhile.
const DEAF_LOOKS: u32 = 30;

impl Story {
    /// Ends all faults and starts all nodes.
    pub(super) async fn heal(&self) {
        self.cluster.network.heal();
        sim_env::make_all_leases_valid();
        let begun = executor::current().now();
        while !self.busy.borrow().is_empty() {
            SimRuntime::sleep(POLL_INTERVAL).await;
            // A node that waits for room at its start may take long.
            if executor::current().now() - begun > 4 * START_TIMEOUT {
                let busy = self.busy.borrow().clone();
                return self.seen.violation(format!("nodes {busy:?} hang"));
            }
        }
        // A node that replaces another needs the cluster's first nodes, so these come first.
        let mut nodes = self.cluster.nodes();
        nodes.sort_by_key(|node| node.is_lost());
        for node in &nodes {
            self.heal_node(node).await;
        }
        for node in self.cluster.nodes() {
            if node.shards().is_none() {
                let why = node.fatal().unwrap_or_else(|| "it hangs".to_owned());
                self.seen
                    .violation(format!("the node does not start: {why}"));
            }
        }
    }

    async fn heal_node(&self, node: &Rc<SimNode>) {
        for platter in node.platters() {
            platter.latency_max_us.set(300);
            platter.hangs.set(false);
            platter.writes_until_failure.set(None);
            platter.reads_until_failure.set(None);
        }
        node.table_disks().for_each(|disk| disk.failing.set(false));
        node.make_room();
        if node.fatal().is_some() {
            self.after_fatal(node).await;
        } else if node.has_failed_disk() {
            // The process is about to end.
            node.crash();
            node.mend_disks();
        }
        let now = self.cluster.on(node.machine);
        if let Some(node) = now.filter(|node| node.shards().is_none()) {
            node.crash();
            self.start(&node, None).await;
        }
    }

    pub(super) async fn check(self: &Rc<Story>) {
        let clients = async {
            while self.seen.clients.get() > 0 {
                SimRuntime::sleep(POLL_INTERVAL).await;
            }
        };
        if SimRuntime::timeout(CLIENTS_END_TIMEOUT, clients)
            .await
            .is_err()
        {
            self.seen.violation("a client does not end".to_owned());
        }
        for node in self.cluster.nodes() {
            if let Some(why) = node.fatal() {
                self.seen
                    .violation(format!("the node stopped without a reason: {why}"));
            }
        }
        if self.cluster.network.damaged.get().1 > 0 {
            let what = "a message that was changed on the way was taken";
            self.seen.violation(what.to_owned());
        }
        if self.faults.have_automatic() {
            self.rest().await;
        }
        self.read_back().await;
        invariants::registers::check(&self.seen);
        self.seen.rows.borrow().check_swaps(&self.seen);
        self.check_convergence().await;
        if self.cluster.machines() > 2 && !self.seen.is_violated() {
            self.check_replication().await;
            // Other replicas lead by now, and some were made from snapshots.
            self.read_back().await;
            self.check_convergence().await;
        }
        if self.cluster.machines() > 2 && !self.seen.is_violated() {
            self.check_steadiness().await;
        }
        if !self.seen.is_violated() {
            self.check_stored().await;
        }
    }

    /// Has the manager change no more bounds by itself.
    async fn rest(&self) {
        for node in self.cluster.nodes() {
            node.table_disks().for_each(|disk| disk.byte_counts.set(1));
        }
        let order = Order::Set {
            name: "merge",
            value: "off",
        };
        let until = executor::current().now() + CONVERGENCE_TIMEOUT;
        while !operator::order(&self.cluster, order, 1).await {
            if executor::current().now() > until {
                return self.seen.violation("no manager takes a setting".to_owned());
            }
            SimRuntime::sleep(REPLICATION_POLL_INTERVAL).await;
        }
    }

    /// Cuts the power of all nodes at once. What they have stored must make the same cluster again.
    async fn check_stored(&self) {
        let nodes = self.cluster.nodes();
        nodes.iter().for_each(|node| node.crash());
        for node in &nodes {
            self.start(node, None).await;
        }
        self.read_back().await;
        self.check_convergence().await;
    }

    /// Checks that everything acknowledged can be read.
    async fn read_back(&self) {
        let reader = self.client(u32::MAX, &Rc::default());
        let keys: Vec<String> = self.seen.counters.borrow().keys().cloned().collect();
        for key in keys {
            let Some(value) = reader.read_with_retries(&key).await else {
                return self.seen.violation(format!("{key} cannot be read"));
            };
            let value = value.unwrap_or_else(|| "0".to_owned());
            invariants::counters::check(&self.seen, &key, value.parse().unwrap_or(i64::MIN));
        }
        reader.scan_now().await;
        reader.scan_snapshots_again().await;
    }

    /// Checks that every range gets all its replicas.
    async fn check_replication(&self) {
        let until = executor::current().now() + RESTORE_TIMEOUT;
        loop {
            let nodes = self.cluster.nodes();
            let response = operator::ask(&nodes[0], ClusterRequest::View).await;
            let missing = match response {
                Some(ClusterResponse::View(view)) => {
                    let nodes: Vec<NodeId> =
                        nodes.iter().map(|node| node.location(0).node).collect();
                    invariants::replication::missing(&view, &nodes, &self.cluster.looks())
                }
                response => Some(format!("the manager says {response:?}")),
            };
            let Some(missing) = missing else { return };
            if executor::current().now() > until {
                return self.seen.violation(format!("no replication: {missing}"));
            }
            SimRuntime::sleep(REPLICATION_POLL_INTERVAL).await;
        }
    }

    /// What keeps the cluster from being at rest.
    fn unconverged(&self) -> Option<String> {
        let looks = self.cluster.looks();
        let missing = invariants::convergence::missing(&looks);
        missing.or_else(|| invariants::directories::missing(&looks, &self.cluster.gateways()))
    }

    async fn check_convergence(&self) {
        let until = executor::current().now() + CONVERGENCE_TIMEOUT;
        while let Some(missing) = self.unconverged() {
            if executor::current().now() > until {
                return self.seen.violation(format!("no convergence: {missing}"));
            }
            SimRuntime::sleep(POLL_INTERVAL).await;
        }
        invariants::compare(&self.seen, &self.cluster, true);
        let looks = self.cluster.looks();
        invariants::tiling::check_whole(&self.seen, &looks);
        // Each of a shard's first two replicas gets a data id of at most 2; a higher one belongs to
        // a snapshot.
        let taken_over = looks.iter().filter(|look| look.status.parts.0.0 > 2);
        self.seen.snapshots.set(taken_over.count() as u64);
    }

    /// Checks that leaders stay while one node does not hear another for a while.
    async fn check_steadiness(&self) {
        let network = &self.cluster.network;
        let count = u64::from(self.cluster.machines());
        let leader = self.random.below(count) as u16 + 1;
        let deaf = (u64::from(leader) + self.random.below(count - 1)) % count + 1;
        let mut before = invariants::steadiness::led(&self.cluster.looks(), leader);
        network.cut(leader, deaf as u16);
        if self.random.once_in(2) {
            network.cut(deaf as u16, leader);
        }
        for _ in 0..DEAF_LOOKS {
            SimRuntime::sleep(DEAF / DEAF_LOOKS).await;
            let looks = self.cluster.looks();
            invariants::steadiness::leave_out_handed_on(&mut before, &looks, [leader, deaf as u16]);
        }
        let after = invariants::steadiness::led(&self.cluster.looks(), deaf as u16);
        network.heal();
        invariants::steadiness::check(&self.seen, &before, &after);
    }
}
