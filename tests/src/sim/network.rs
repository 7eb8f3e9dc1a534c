//! The links between shards: delays, loss, late duplicates, damage, and cuts in one direction.
//!
//! Each request and each response takes a random time. Requests of one class from one shard to another
//! arrive in order, as on a connection, also after the receiver was paused. Requests of different
//! shards or classes, and responses, overtake each other; a duplicate comes at any time. A lost
//! request or response is never reported: the sender gives up by its own clock. A message on its way
//! arrives even if its sender crashes.
//!
//! Forwarded requests of clients ([`MessageClass::Clients`]) rely on what a connection gives: none comes twice,
//! and one that is lost, with its connection, is reported after a while.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::rc::{Rc, Weak};
use std::time::Duration;

use bytes::Bytes;
use rangedb_engine::env::{MessageClass, Transport};
use rangedb_engine::frame;
use rangedb_engine::gateway::Gateway;
use rangedb_engine::raft::{self, Message};
use rangedb_engine::shard::Shard;
use rangedb_engine::types::{Location, NodeId, RangeId};
use rangedb_engine::wal::Group;
use tokio::sync::oneshot;

use super::executor::{self, Host, OUTSIDE};
use super::faults::Telling;
use super::random::Random;
use super::sim_env::SimEnv;
use crate::invariants;

/// The longest delay of a message on a link that is not slow, in microseconds.
const DELAY_MAX_US: u64 = 500;
/// A duplicate arrives within this many milliseconds.
const LATE_MAX_MS: u64 = 2_000;
/// A connection on which a message was lost breaks after this time.
const BREAK_TIMEOUT: Duration = Duration::from_secs(1);

/// The kind of the frames that carry damaged messages.
const REQUEST: u16 = 101;

struct Attached {
    host: Host,
    gateway: Gateway<SimEnv>,
}

/// A request on its way: when it arrives, and where its response goes.
struct Sent {
    arrives: Duration,
    request: Bytes,
    response: oneshot::Sender<io::Result<Bytes>>,
}

/// A one-way connection: from one shard to another, of one class.
type Way = (Location, Location, MessageClass);

/// All links of a cluster.
pub struct Network {
    random: Random,
    attached: RefCell<BTreeMap<Location, Attached>>,
    /// The machine of each node.
    machines: RefCell<BTreeMap<NodeId, u16>>,
    /// Pairs of machines; the first cannot reach the second.
    cut: RefCell<BTreeSet<(u16, u16)>>,
    /// Ranges whose replicas on a machine are cut off, while all others there are not.
    withheld: RefCell<BTreeSet<(RangeId, u16)>>,
    /// The longest delay from the first machine to the second, in microseconds.
    slow: RefCell<BTreeMap<(u16, u16), u64>>,
    /// Machines that must stop right after their next answer of a kind, and where to report its
    /// receiver.
    at_answer: RefCell<BTreeMap<(u16, Telling), oneshot::Sender<u16>>>,
    /// The requests on their way. For each key a task carries them.
    under_way: RefCell<BTreeMap<Way, VecDeque<Sent>>>,
    /// One message in this many is lost; 0: none.
    pub loss_one_in: Cell<u64>,
    /// Whether some messages are delivered twice, the second time late.
    pub duplicates: Cell<bool>,
    /// In one message in this many a bit is flipped on the way; 0: in none.
    pub damage_one_in: Cell<u64>,
    /// The number of damaged messages, and how many of them the receiver accepted nevertheless.
    pub damaged: Cell<(u64, u64)>,
}

impl Network {
    /// Links without faults.
    pub fn new(random: Random) -> Rc<Network> {
        Rc::new(Network {
            random,
            attached: RefCell::default(),
            machines: RefCell::default(),
            cut: RefCell::default(),
            withheld: RefCell::default(),
            slow: RefCell::default(),
            at_answer: RefCell::default(),
            under_way: RefCell::default(),
            loss_one_in: Cell::new(0),
            duplicates: Cell::new(false),
            damage_one_in: Cell::new(0),
            damaged: Cell::default(),
        })
    }

    /// The links of the shard at `from`.
    pub fn link(self: &Rc<Network>, from: Location) -> SimLink {
        let network = Rc::downgrade(self);
        SimLink { network, from }
    }

    /// Sets the machine of a node.
    pub fn place(&self, node: NodeId, machine: u16) {
        self.machines.borrow_mut().insert(node, machine);
    }

    /// The machines of two shards.
    fn machines(&self, from: Location, to: Location) -> (u16, u16) {
        let machines = self.machines.borrow();
        let machine = |at: Location| machines.get(&at.node).copied().unwrap_or_default();
        (machine(from), machine(to))
    }

    /// Makes a shard reachable.
    pub fn attach(&self, at: Location, host: Host, gateway: Gateway<SimEnv>) {
        self.attached
            .borrow_mut()
            .insert(at, Attached { host, gateway });
    }

    /// Makes a node's shards unreachable.
    pub fn detach(&self, node: NodeId) {
        let mut attached = self.attached.borrow_mut();
        attached.retain(|at, _| at.node != node);
    }

    /// Cuts the link from `from` to `to`.
    pub fn cut(&self, from: u16, to: u16) {
        self.cut.borrow_mut().insert((from, to));
    }

    /// Loses all messages to and from the replica of a range on a machine, or loses them no more.
    pub fn withhold(&self, range: RangeId, machine: u16, is_withheld: bool) {
        let mut withheld = self.withheld.borrow_mut();
        match is_withheld {
            true => withheld.insert((range, machine)),
            false => withheld.remove(&(range, machine)),
        };
    }

    /// Whether a message is to or from a replica whose messages are withheld.
    fn is_withheld(&self, from: Location, to: Location, message: &Bytes) -> bool {
        let withheld = self.withheld.borrow();
        if withheld.is_empty() {
            return false;
        }
        let (from, to) = self.machines(from, to);
        let Some(Message::Request(envelope, _)) = raft::decode(message) else {
            return false;
        };
        [from, to]
            .iter()
            .any(|machine| withheld.contains(&(envelope.range, *machine)))
    }

    /// Sets the longest delay of messages from `from` to `to`.
    pub fn slow_down(&self, from: u16, to: u16, delay_max_us: u64) {
        self.slow.borrow_mut().insert((from, to), delay_max_us);
    }

    /// Pauses a machine right after its next answer of this kind has left, and sends the receiver's
    /// machine to `told`.
    pub fn stop_at(&self, machine: u16, response: Telling, told: oneshot::Sender<u16>) {
        self.at_answer
            .borrow_mut()
            .insert((machine, response), told);
    }

    /// Forgets all answers at which a machine would be paused.
    pub fn forget_stops(&self) {
        self.at_answer.borrow_mut().clear();
    }

    /// Mends all cut links.
    pub fn mend(&self) {
        self.cut.borrow_mut().clear();
    }

    /// Ends all faults of the links.
    pub fn heal(&self) {
        self.mend();
        self.forget_stops();
        self.withheld.borrow_mut().clear();
        self.slow.borrow_mut().clear();
        self.loss_one_in.set(0);
        self.duplicates.set(false);
        self.damage_one_in.set(0);
    }

    fn delay(&self, from: Location, to: Location) -> Duration {
        let link = self.machines(from, to);
        let most = self.slow.borrow().get(&link).copied();
        Duration::from_micros(self.random.between(20, most.unwrap_or(DELAY_MAX_US)))
    }

    /// The message as it arrives now, perhaps damaged; `None` if it is lost.
    fn arrives(&self, from: Location, to: Location, message: Bytes) -> Option<Bytes> {
        let is_cut = self.cut.borrow().contains(&self.machines(from, to));
        let loss = self.loss_one_in.get();
        if is_cut || (loss > 0 && self.random.once_in(loss)) {
            return None;
        }
        let damage = self.damage_one_in.get();
        if damage == 0 || from.node == to.node || !self.random.once_in(damage) {
            return Some(message);
        }
        let arrived = self.damage(&message);
        let (damaged, taken) = self.damaged.get();
        let taken = taken + u64::from(arrived.is_some());
        self.damaged.set((damaged + 1, taken));
        arrived
    }

    /// Puts a message into a frame as real links do, and flips a bit of it. A real link would close
    /// at such a frame; here only the message is lost.
    fn damage(&self, message: &[u8]) -> Option<Bytes> {
        let mut bytes = Vec::new();
        frame::encode(self.random.next(), REQUEST, message, &mut bytes);
        let bit = self.random.below(bytes.len() as u64 * 8) as usize;
        bytes[bit / 8] ^= 1 << (bit % 8);
        let found = frame::decode(&bytes).ok().flatten()?;
        Some(Bytes::copy_from_slice(found.body))
    }

    fn send(self: &Rc<Network>, way: Way, sent: Sent) {
        let mut under_way = self.under_way.borrow_mut();
        if let Some(queue) = under_way.get_mut(&way) {
            return queue.push_back(sent);
        }
        under_way.insert(way, VecDeque::from([sent]));
        let network = self.clone();
        executor::current().spawn_on(OUTSIDE, async move { network.carry(way).await });
    }

    /// Delivers the requests of one connection in order, until there are none.
    async fn carry(self: Rc<Network>, way: Way) {
        let (from, to, class) = way;
        loop {
            let next = {
                let mut under_way = self.under_way.borrow_mut();
                let next = under_way.get_mut(&way).and_then(VecDeque::pop_front);
                if next.is_none() {
                    under_way.remove(&way);
                }
                next
            };
            let Some(sent) = next else { return };
            // Let time pass between any two requests, so that the first is handled before the
            // second arrives.
            let least = executor::current().now() + Duration::from_micros(1);
            executor::sleep_until(sent.arrives.max(least)).await;
            self.await_running(to).await;
            let is_withheld = self.is_withheld(from, to, &sent.request);
            let arrived = self.arrives(from, to, sent.request);
            if let Some(request) = arrived.filter(|_| !is_withheld) {
                if self.duplicates.get()
                    && class != MessageClass::Clients
                    && self.random.once_in(10)
                {
                    self.deliver_again(way, request.clone());
                }
                let network = self.clone();
                let response = self.deliver(way, request);
                executor::current().spawn_on(OUTSIDE, async move {
                    network.bring_back(way, response, sent.response).await;
                });
            } else {
                executor::current().spawn_on(OUTSIDE, lost(class, sent.response));
            }
        }
    }

    /// Waits while the receiver is paused: it receives its messages when it runs again.
    async fn await_running(&self, to: Location) {
        std::future::poll_fn(|cx| {
            let host = self.attached.borrow().get(&to).map(|there| there.host);
            match host {
                Some(host) if executor::current().waits_for(host, Some(cx.waker())) => {
                    std::task::Poll::Pending
                }
                _ => std::task::Poll::Ready(()),
            }
        })
        .await;
    }

    async fn bring_back(
        &self,
        (asker, from, class): Way,
        response: Option<oneshot::Receiver<Bytes>>,
        to: oneshot::Sender<io::Result<Bytes>>,
    ) {
        let response = match response {
            None => Err(io::ErrorKind::ConnectionRefused.into()),
            Some(response) => response
                .await
                .map_err(|_| io::ErrorKind::ConnectionReset.into()),
        };
        executor::sleep_until(executor::current().now() + self.delay(from, asker)).await;
        let came = self.arrives(
            from,
            asker,
            response.as_ref().ok().cloned().unwrap_or_default(),
        );
        let Some(came) = came else {
            return lost(class, to).await;
        };
        let response = response.map(|_| came);
        // The sender may have given up.
        let _ = to.send(response);
    }

    /// Lets the shard at `to` answer a request from the shard at `from`.
    fn deliver(
        self: &Rc<Network>,
        (from, to, class): Way,
        request: Bytes,
    ) -> Option<oneshot::Receiver<Bytes>> {
        let attached = self.attached.borrow();
        let Attached { host, gateway } = attached.get(&to)?;
        let (sender, receiver) = oneshot::channel();
        let (host, gateway) = (*host, gateway.clone());
        let network = self.clone();
        executor::current().spawn_on(host, async move {
            if class == MessageClass::Clients {
                // The sender may have given up.
                let _ = sender.send(gateway.answer(class, request).await);
                return;
            }
            let shard = gateway.shard();
            let before = network.last_entries(to, shard);
            let response = gateway.answer(class, request.clone()).await;
            let has_voted = invariants::answered(request, &response);
            // The sender may have given up.
            let _ = sender.send(response);
            if has_voted {
                network.stop_if_asked(from, to, Telling::Voted);
            }
            let after = network.last_entries(to, shard);
            let mut shorter = before
                .iter()
                .filter_map(|(group, last)| Some((after.get(group)?, last)));
            if shorter.any(|(now, before)| now < before) {
                network.stop_if_asked(from, to, Telling::Truncated);
            }
        });
        Some(receiver)
    }

    /// The index of the last entry in each log of a shard; empty unless its machine must stop when
    /// a log becomes shorter.
    fn last_entries(&self, at: Location, shard: &Shard<SimEnv>) -> BTreeMap<Group, u64> {
        let (machine, _) = self.machines(at, at);
        let stops = self.at_answer.borrow();
        if !stops.contains_key(&(machine, Telling::Truncated)) {
            return BTreeMap::new();
        }
        let logs = shard.logs().into_iter();
        logs.map(|(group, state, _)| (group, state.last.map_or(0, |id| id.index)))
            .collect()
    }

    /// Pauses the answering machine if a fault waits for this kind of answer.
    fn stop_if_asked(&self, from: Location, to: Location, response: Telling) {
        let (asker, machine) = self.machines(from, to);
        let told = self.at_answer.borrow_mut().remove(&(machine, response));
        if let Some(told) = told {
            executor::current().pause(machine);
            // The run may have ended.
            let _ = told.send(asker);
        }
    }

    /// Delivers a request a second time, late, and drops the response.
    fn deliver_again(self: &Rc<Network>, way: Way, request: Bytes) {
        let network = self.clone();
        executor::current().spawn_on(OUTSIDE, async move {
            let late = Duration::from_millis(network.random.below(LATE_MAX_MS));
            executor::sleep_until(executor::current().now() + late).await;
            drop(network.deliver(way, request));
        });
    }
}

/// Keeps a lost message's sender waiting: until it gives up, or, as with a connection, until that is
/// found to be broken.
async fn lost(class: MessageClass, mut response: oneshot::Sender<io::Result<Bytes>>) {
    if class != MessageClass::Clients {
        return response.closed().await;
    }
    executor::sleep_until(executor::current().now() + BREAK_TIMEOUT).await;
    // The sender may have given up.
    let _ = response.send(Err(io::ErrorKind::ConnectionReset.into()));
}

/// The links of one shard.
#[derive(Clone)]
pub struct SimLink {
    /// The network keeps the shards that have links.
    network: Weak<Network>,
    from: Location,
}

impl Transport for SimLink {
    async fn call(&self, to: Location, class: MessageClass, request: Bytes) -> io::Result<Bytes> {
        if class == MessageClass::Clients {
            invariants::forwarded(self.from, to, &request);
        }
        let lost = io::ErrorKind::ConnectionReset;
        let network = self.network.upgrade().ok_or(lost)?;
        let (sender, receiver) = oneshot::channel();
        let sent = Sent {
            arrives: executor::current().now() + network.delay(self.from, to),
            request,
            response: sender,
        };
        network.send((self.from, to, class), sent);
        receiver.await.unwrap_or_else(|_| Err(lost.into()))
    }
}
