//! The nodes of a run and the network between them.

use std::rc::Rc;

use rangedb_engine::lsm::MemoryDisk;
use rangedb_engine::shard::RangeStatus;

use super::disk::Platter;
use super::executor::{self, Host};
use super::network::Network;
use super::node::{SimNode, Sizes};
use super::random::Random;

/// All nodes of a run.
pub struct Cluster {
    /// By id, from 1.
    pub nodes: Vec<Rc<SimNode>>,
    /// Between them.
    pub network: Rc<Network>,
}

impl Cluster {
    /// Nodes that have never run.
    pub fn new(sizes: Sizes, seed: u64) -> Rc<Cluster> {
        let network = Network::new(Random::new(seed, 4));
        let node = |id| SimNode::new(id, sizes, seed, network.clone());
        Rc::new(Cluster {
            nodes: (1..=sizes.nodes).map(node).collect(),
            network: network.clone(),
        })
    }

    /// A node by its id.
    pub fn node(&self, id: u64) -> Option<&Rc<SimNode>> {
        self.nodes.get((id as usize).checked_sub(1)?)
    }

    /// The disks of all logs.
    pub fn platters(&self) -> impl Iterator<Item = &Rc<Platter>> {
        self.nodes.iter().flat_map(|node| node.platters())
    }

    /// The disks of all tables.
    pub fn table_disks(&self) -> impl Iterator<Item = &Rc<MemoryDisk>> {
        self.nodes.iter().flat_map(|node| node.table_disks())
    }

    /// Every replica that runs, as its host sees it now.
    pub fn looks(&self) -> Vec<Look> {
        let executor = executor::current();
        let mut looks = Vec::new();
        for node in &self.nodes {
            let (host, shards) = (node.host(), node.shards());
            for shard in shards.iter().flat_map(|shards| shards.iter()) {
                let ranges = executor.on_host(host, || shard.ranges());
                looks.extend(ranges.into_iter().map(|status| Look { host, status }));
            }
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
