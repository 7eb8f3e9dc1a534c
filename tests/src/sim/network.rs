//! The links between shards: delay, loss, late duplicates, and cuts in one direction.
//!
//! A question and its answer each take a random time. What one shard sends another arrives in
//! order, as on a connection; a duplicate comes whenever it likes. What is lost is never answered;
//! whoever asked gives up by its own clock.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use rangedb_engine::env::{AsyncRuntime, Transport};
use rangedb_engine::shard::Shard;
use rangedb_engine::types::Location;
use tokio::sync::oneshot;

use super::executor::{self, Host, OUTSIDE};
use super::random::Random;
use super::runtime::SimRuntime;
use super::world::SimEnv;

struct Attached {
    host: Host,
    shard: Shard<SimEnv>,
}

/// All links of a cluster.
pub struct Network {
    random: Random,
    attached: RefCell<BTreeMap<Location, Attached>>,
    /// Pairs of nodes of which the first cannot reach the second.
    cut: RefCell<BTreeSet<(u64, u64)>>,
    /// When the last message from one shard to another arrives.
    arrives: RefCell<BTreeMap<(Location, Location), Duration>>,
    /// The longest that a message takes, in microseconds.
    pub delay_max_us: Cell<u64>,
    /// One message in so many is lost; 0: none.
    pub loss_one_in: Cell<u64>,
    /// Whether messages come twice, the second time late.
    pub duplicates: Cell<bool>,
}

impl Network {
    /// Links that work.
    pub fn new(random: Random) -> Rc<Network> {
        Rc::new(Network {
            random,
            attached: RefCell::default(),
            cut: RefCell::default(),
            arrives: RefCell::default(),
            delay_max_us: Cell::new(500),
            loss_one_in: Cell::new(0),
            duplicates: Cell::new(false),
        })
    }

    /// The links of the shard at `from`.
    pub fn link(self: &Rc<Network>, from: Location) -> SimLink {
        let network = self.clone();
        SimLink { network, from }
    }

    /// A shard answers from now on.
    pub fn attach(&self, at: Location, host: Host, shard: Shard<SimEnv>) {
        self.attached
            .borrow_mut()
            .insert(at, Attached { host, shard });
    }

    /// A node is gone.
    pub fn detach(&self, node: u16) {
        let mut attached = self.attached.borrow_mut();
        attached.retain(|at, _| at.node.0 != u64::from(node));
    }

    /// From now on `from` cannot reach `to`.
    pub fn cut(&self, from: u16, to: u16) {
        self.cut.borrow_mut().insert((from.into(), to.into()));
    }

    /// All links work again.
    pub fn heal(&self) {
        self.cut.borrow_mut().clear();
        self.loss_one_in.set(0);
        self.duplicates.set(false);
        self.delay_max_us.set(500);
    }

    /// Takes a message along; `false` if it is lost.
    async fn carry(&self, from: Location, to: Location) -> bool {
        let delay = Duration::from_micros(self.random.between(20, self.delay_max_us.get()));
        let now = executor::current().now();
        let at = {
            let mut arrives = self.arrives.borrow_mut();
            let last = arrives.entry((from, to)).or_default();
            // Time moves on between any two, so that each is met before the next comes.
            *last = (now + delay).max(*last + Duration::from_micros(1));
            *last
        };
        SimRuntime::sleep(at - now).await;
        let is_cut = self.cut.borrow().contains(&(from.node.0, to.node.0));
        let loss = self.loss_one_in.get();
        !is_cut && (loss == 0 || !self.random.once_in(loss))
    }

    /// Has the shard at `to` answer.
    fn deliver(&self, to: Location, question: Bytes) -> Option<oneshot::Receiver<Bytes>> {
        let attached = self.attached.borrow();
        let Attached { host, shard } = attached.get(&to)?;
        let (sender, receiver) = oneshot::channel();
        let (host, shard) = (*host, shard.clone());
        drop(attached);
        executor::current().spawn_on(host, async move {
            // Whoever asked may have given up.
            let _ = sender.send(shard.answer(question).await);
        });
        Some(receiver)
    }
}

impl Network {
    /// Delivers a question once more, some time later. Nobody hears the answer.
    fn deliver_again(self: &Rc<Network>, to: Location, question: Bytes) {
        let network = self.clone();
        executor::current().spawn_on(OUTSIDE, async move {
            let late = network.random.below(2_000);
            SimRuntime::sleep(Duration::from_millis(late)).await;
            drop(network.deliver(to, question));
        });
    }
}

/// The links of one shard.
#[derive(Clone)]
pub struct SimLink {
    network: Rc<Network>,
    from: Location,
}

impl Transport for SimLink {
    async fn call(&self, to: Location, question: Bytes) -> io::Result<Bytes> {
        let network = &self.network;
        if !network.carry(self.from, to).await {
            return std::future::pending().await;
        }
        if network.duplicates.get() && network.random.once_in(10) {
            network.deliver_again(to, question.clone());
        }
        let Some(answer) = network.deliver(to, question) else {
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        let Ok(answer) = answer.await else {
            return Err(io::ErrorKind::ConnectionReset.into());
        };
        if !network.carry(to, self.from).await {
            return std::future::pending().await;
        }
        Ok(answer)
    }
}
