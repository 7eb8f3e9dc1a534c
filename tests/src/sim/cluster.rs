//! The nodes of a run and the network between them.
//!
//! Machines are numbered from 1. A node has its machine's number as its id. When a machine loses
//! its disk, another node, with an id that the cluster gives, replaces the first one.

use std::cell::RefCell;
use std::rc::Rc;

use rangedb_engine::gateway::Gateway;
use rangedb_engine::shard::{RangeStatus, Shard};
use rangedb_engine::types::Location;

use super::executor::{self, Host};
use super::network::Network;
use super::node::{SimNode, Sizes};
use super::random::Random;
use super::sim_env::SimEnv;

/// All nodes of a run.
pub struct Cluster {
    /// The sizes of the cluster and its nodes.
    pub sizes: Sizes,
    /// The node of each machine, in order.
    nodes: RefCell<Vec<Rc<SimNode>>>,
    /// The links between the nodes.
    pub network: Rc<Network>,
}

impl Cluster {
    /// Makes nodes that have never run.
    pub fn new(sizes: Sizes, seed: u64) -> Rc<Cluster> {
        let network = Network::new(Random::new(seed, 4));
        let node = |id| SimNode::new(id, sizes, seed, network.clone());
        Rc::new(Cluster {
            sizes,
            nodes: RefCell::new((1..=sizes.nodes).map(node).collect()),
            network: network.clone(),
        })
    }

    /// The node of each machine.
    pub fn nodes(&self) -> Vec<Rc<SimNode>> {
        self.nodes.borrow().clone()
    }

    /// The number of machines.
    pub fn machines(&self) -> u16 {
        self.nodes.borrow().len() as u16
    }

    /// The node of a machine.
    pub fn on(&self, machine: u16) -> Option<Rc<SimNode>> {
        let place = usize::from(machine).checked_sub(1)?;
        self.nodes.borrow().get(place).cloned()
    }

    /// A node by its id.
    pub fn node(&self, id: u64) -> Option<Rc<SimNode>> {
        let nodes = self.nodes.borrow();
        nodes.iter().find(|node| u64::from(node.id) == id).cloned()
    }

    /// Replaces the node of a machine.
    pub fn replace(&self, node: Rc<SimNode>) {
        let place = usize::from(node.machine) - 1;
        self.nodes.borrow_mut()[place] = node;
    }

    /// All running shards and their hosts.
    pub fn shards(&self) -> Vec<(Host, Shard<SimEnv>)> {
        let mut all = Vec::new();
        for node in self.nodes() {
            let (host, shards) = (node.host(), node.shards());
            let shards = shards.iter().flat_map(|shards| shards.iter());
            all.extend(shards.map(|shard| (host, shard.clone())));
        }
        all
    }

    /// All gateways of running nodes, and their hosts.
    pub fn gateways(&self) -> Vec<(Host, Gateway<SimEnv>)> {
        let mut all = Vec::new();
        for node in self.nodes() {
            let (host, gateways) = (node.host(), node.gateways());
            let gateways = gateways.iter().flat_map(|gateways| gateways.iter());
            all.extend(gateways.map(|gateway| (host, gateway.clone())));
        }
        all
    }

    /// The state of every running replica, as its host sees it now.
    pub fn looks(&self) -> Vec<Look> {
        let executor = executor::current();
        let mut looks = Vec::new();
        for (host, shard) in self.shards() {
            let ranges = executor.on_host(host, || shard.ranges());
            let at = shard.location();
            looks.extend(ranges.into_iter().map(|status| Look { host, at, status }));
        }
        looks
    }
}

/// The state of a replica at one moment.
pub struct Look {
    /// The host that it runs on.
    pub host: Host,
    /// The node and shard of the replica.
    pub at: Location,
    /// The state that the shard reports.
    pub status: RangeStatus,
}
