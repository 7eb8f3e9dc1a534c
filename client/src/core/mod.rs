//! The decisions of a client, apart from everything that carries them out: which node a call goes
//! to, when it is tried again, under which request id, and when it ends.
//!
//! Events go in, actions come out. [`Call`] is the state machine of one call; [`ClientCore`] holds what
//! the calls of a client share: the addresses, the [`directory`] of routes, the [`session`] with its
//! request ids, the [`backoff`] budget and the addresses that [are avoided](avoided_addresses).
//!
//! The core has no socket, no runtime and no clock. Its driver gives the time with each event, and
//! the core never asks for it; random numbers follow from the id that the driver draws for the
//! client. So the same events give the same actions. There are two drivers: the tokio client of this
//! crate, and the simulated clients of the project's tests. So the simulator tests the same retries that
//! users run.
//!
//! All of it may be shared between threads. Its locks are held for moments, and never over a wait.

pub mod avoided_addresses;
pub mod backoff;
pub mod call;
pub mod directory;

pub mod multi_get;
pub mod session;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rangedb_protocol::Route;

pub use call::{Action, Attempt, Call, Event, Kind, Lost};
pub use directory::{Directory, Endpoint};
pub use session::Session;

use avoided_addresses::AvoidedAddresses;
use backoff::Budget;

/// If a node has not sent the directory after this long, the next node is asked, too; sooner if time
/// is short.
const ATTEMPT_DELAY_MAX: Duration = Duration::from_millis(100);

/// What the calls of one client share.
#[derive(Debug)]
pub struct ClientCore {
    addresses: Vec<Arc<str>>,
    session: Session,
    directory: Directory,
    budget: Budget,
    avoided: AvoidedAddresses,
    random: Random,
    /// How often the directory was received.
    directories: AtomicU64,
}

impl ClientCore {
    /// The core of a client that was given these addresses of nodes, at least one. The client's id
    /// is random.
    pub fn new(addresses: Vec<Arc<str>>, client: u128, now: Instant) -> ClientCore {
        ClientCore {
            addresses,
            session: Session::new(client, now),
            directory: Directory::default(),
            budget: Budget::default(),
            avoided: AvoidedAddresses::default(),
            random: Random(AtomicU64::new((client >> 64) as u64 ^ client as u64)),
            directories: AtomicU64::new(0),
        }
    }

    /// The addresses that the client was given.
    pub fn addresses(&self) -> &[Arc<str>] {
        &self.addresses
    }

    /// How often the directory was received. Until it was, the client knows neither a route nor the
    /// cluster's time.
    pub fn directories(&self) -> u64 {
        self.directories.load(Ordering::Acquire)
    }

    /// Takes the directory that node `node` at `address` has sent at `timestamp`, its time.
    pub fn take_directory(
        &self,
        routes: Vec<Route>,
        timestamp: u64,
        (node, address): (u64, &Arc<str>),
        now: Instant,
    ) {
        self.session.observe(timestamp, now);
        for route in routes {
            self.directory.learn(route, (node, address));
        }
        self.directories.fetch_add(1, Ordering::AcqRel);
    }

    /// The order in which nodes are asked for the directory, and how long each may be silent before
    /// the next is asked, too. It starts with a random one; those that failed a short time ago come
    /// last.
    pub fn order(&self, deadline: Instant, now: Instant) -> (Vec<Arc<str>>, Duration) {
        let mut addresses = self.addresses.clone();
        let first = self.random.below(addresses.len());
        addresses.rotate_left(first);
        addresses.sort_by_key(|address| self.avoided.is_left_out(address, now));
        (addresses, self.attempt_delay(deadline, now))
    }

    /// How long one of the addresses may be silent before the next is asked, too.
    pub fn attempt_delay(&self, deadline: Instant, now: Instant) -> Duration {
        let left = deadline.saturating_duration_since(now);
        let count = u32::try_from(self.addresses.len()).unwrap_or(u32::MAX);
        ATTEMPT_DELAY_MAX.min(left / count.saturating_mul(2).max(1))
    }

    /// A node has answered at this address.
    pub fn reached(&self, address: &str) {
        self.avoided.reached(address);
    }

    /// This address does not answer: it is avoided for a time.
    pub fn leave_out(&self, address: &Arc<str>, now: Instant) {
        self.avoided.leave_out(address, now);
    }

    /// How long to wait before retry number `tries`, at least as long as a node has asked for.
    pub fn pause(&self, tries: u32, asked: Option<Duration>) -> Duration {
        backoff::pause(tries, asked, self.random.fraction())
    }

    /// The node of the first address that the caller has given.
    pub fn first_endpoint(&self) -> Endpoint {
        Endpoint {
            address: self.addresses.first().cloned().unwrap_or_default(),
            shard: None,
        }
    }

    /// A random node, if possible one that has not failed a short time ago.
    fn any_endpoint(&self, now: Instant) -> Endpoint {
        let first = self.random.below(self.addresses.len());
        let mut all = (self.addresses.iter().cycle())
            .skip(first)
            .take(self.addresses.len());
        let fit = all.find(|address| !self.avoided.is_left_out(address, now));
        let address = fit.or(self.addresses.get(first)).cloned();
        Endpoint {
            address: address.unwrap_or_default(),
            shard: None,
        }
    }
}

/// Random numbers that follow from a seed: SplitMix64, whose state is a counter, so that threads
/// share it without a lock.
#[derive(Debug)]
struct Random(AtomicU64);

impl Random {
    fn next(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 if there is none.
    fn below(&self, bound: usize) -> usize {
        (self.next() % (bound as u64).max(1)) as usize
    }

    /// A number from 0 up to, but without, 1.
    fn fraction(&self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}
