//! The nodes of a run and the network between them.
//!
//! A node runs on a machine, counted from 1, and has its machine's number as its id until it loses its
//! disk: then another node, with an id that the cluster gives, runs on the machine.

use std::cell::RefCell;
use std::rc::Rc;

use rangedb_engine::shard::{RangeStatus, Shard};

use super::executor::{self, Host};
use super::network::Network;
use super::node::{SimNode, Sizes};
use super::random::Random;
use super::world::SimEnv;

/// All nodes of a run.
pub struct Cluster {
    /// See [`Sizes`].
    pub sizes: Sizes,
    /// By machine.
    nodes: RefCell<Vec<Rc<SimNode>>>,
    /// Between them.
    pub network: Rc<Network>,
}

impl Cluster {
    /// Nodes that have never run.
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

    /// How many machines there are.
    pub fn machines(&self) -> u16 {
        self.nodes.borrow().len() as u16
    }

    /// The node that runs on a machine.
    pub fn on(&self, machine: u16) -> Option<Rc<SimNode>> {
        let place = usize::from(machine).checked_sub(1)?;
        self.nodes.borrow().get(place).cloned()
    }

    /// A node by its id.
    pub fn node(&self, id: u64) -> Option<Rc<SimNode>> {
        let nodes = self.nodes.borrow();
        nodes.iter().find(|node| u64::from(node.id) == id).cloned()
    }

    /// Another node runs on a machine from now on.
    pub fn replace(&self, node: Rc<SimNode>) {
        let place = usize::from(node.machine) - 1;
        self.nodes.borrow_mut()[place] = node;
    }

    /// Every shard that runs, and where.
    pub fn shards(&self) -> Vec<(Host, Shard<SimEnv>)> {
        let mut all = Vec::new();
        for node in self.nodes() {
            let (host, shards) = (node.host(), node.shards());
            let shards = shards.iter().flat_map(|shards| shards.iter());
            all.extend(shards.map(|shard| (host, shard.clone())));
        }
        all
    }

    /// Every replica that runs, as its host sees it now.
    pub fn looks(&self) -> Vec<Look> {
        let executor = executor::current();
        let mut looks = Vec::new();
        for (host, shard) in self.shards() {
            let ranges = executor.on_host(host, || shard.ranges());
            looks.extend(ranges.into_iter().map(|status| Look { host, status }));
        }
        looks
    }
}

/// A replica at one moment.
pub struct Look {
    /// Where it runs.
    pub host: Host,
    /// What it says.
    pub status: RangeStatus,
}
