//! The only door from the engine to the world.
//!
//! [`Env`] bundles what a shard needs from outside: tasks and time ([`Env::Runtime`]), wall clock
//! and randomness, a disk for the WAL, the store of table files and the links to other shards.
//! There are two of it: on glommio in `server`, and a deterministic one, in virtual time and with
//! faults, in `tests`. Everything here lives on one shard's thread; nothing need be `Send`.

use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
pub use openraft_rt::{AsyncRuntime, Instant};

use crate::boot_time::BootTime;
use crate::limits::TIME_SLICE;
use crate::lsm::TableStore;
use crate::types::{Location, NodeStats};

/// The world, as types. The values that go with them are in [`World`].
pub trait Env: Copy + std::fmt::Debug + Default + Eq + Ord + 'static {
    /// Tasks, sleep and the boot-time clock of this shard's thread. A spawned task that panics
    /// aborts the process.
    type Runtime: AsyncRuntime<Instant: From<BootTime> + Into<BootTime>>;
    /// Wall clock and randomness.
    type Clock: Clock;
    /// Files of the WAL.
    type Disk: Disk;
    /// Files of the LSM.
    type Tables: TableStore;
    /// Links to other shards, on this node and elsewhere.
    type Transport: Transport;

    /// The time on the boot-time clock of this shard's thread.
    fn now() -> BootTime {
        <Self::Runtime as AsyncRuntime>::Instant::now().into()
    }

    /// Does work that may take long beside the shard's thread. Fails only if there is no thread for
    /// it. Where there is one thread alone, as in the simulator, it is done in one turn of that.
    fn beside<R: Send + 'static>(
        work: impl FnOnce() -> R + Send + 'static,
    ) -> impl Future<Output = io::Result<R>> {
        std::future::ready(Ok(work()))
    }

    /// Waits for a future that another thread completes: a wake that comes from there must find its
    /// way to this thread's reactor. Where there is one thread alone, as in the simulator, any wake
    /// does.
    fn cross_thread<F: Future>(future: F) -> impl Future<Output = F::Output> {
        future
    }

    /// How long a task that can stop works now before it lets others run: what is left of
    /// [`TIME_SLICE`], which all such tasks share in one pass over the tasks that are ready. In the
    /// simulator, where work takes no time, on some machines none at all, so that tasks are cut there,
    /// too.
    fn time_slice() -> Duration {
        TIME_SLICE
    }

    /// Takes this much time off what is left of the slice of the present pass.
    fn has_worked(_time: Duration) {}

    /// The CPU time that this thread has used since it began; `None` where that is not known, as in the
    /// simulator, where work takes no time.
    fn thread_cpu_time() -> Option<Duration> {
        None
    }

    /// How this node is as a whole; nothing is known of one in the simulator.
    fn node_stats() -> NodeStats {
        NodeStats::default()
    }

    /// Whether a leader may read alone within its lease. Always; in the simulator not always, so that
    /// reads are confirmed by others also where leases are renewed in time.
    #[inline(always)]
    fn leases_are_valid() -> bool {
        true
    }
}

/// Lets every other task that is ready run once.
pub(crate) async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Steps of work between two looks at the clock.
const STEPS_OF_LOOK: usize = 8;

/// The time for which a task may work before it lets others run: [`Env::time_slice`]. Tasks that begin
/// one in the same pass share the time, so a hundred scans keep others waiting no longer than one does.
pub(crate) struct TimeSlice<E> {
    /// The time up to which the work is counted.
    looked: BootTime,
    ends: BootTime,
    /// Steps since the last look.
    steps: usize,
    env: PhantomData<E>,
}

impl<E: Env> TimeSlice<E> {
    /// A slice that begins now.
    pub(crate) fn begin() -> TimeSlice<E> {
        let now = E::now();
        TimeSlice {
            looked: now,
            ends: now + E::time_slice(),
            steps: 0,
            env: PhantomData,
        }
    }

    /// Counts a step of work; gives whether the time is up. The first steps are always granted.
    pub(crate) fn is_over(&mut self) -> bool {
        self.is_over_after(1)
    }

    /// Counts steps of work that were done since the last look; gives whether the time is up.
    pub(crate) fn is_over_after(&mut self, steps: usize) -> bool {
        self.steps += steps;
        if self.steps < STEPS_OF_LOOK {
            return false;
        }
        self.steps = 0;
        let now = E::now();
        E::has_worked(now - self.looked);
        self.looked = now;
        now >= self.ends
    }
}

/// What one shard is given of the world.
pub struct World<E: Env> {
    /// Wall clock and randomness.
    pub clock: E::Clock,
    /// The shard's WAL folder.
    pub disk: E::Disk,
    /// The shard's table store, open.
    pub tables: E::Tables,
    /// Links to other shards.
    pub transport: E::Transport,
}

/// Wall clock and randomness.
pub trait Clock: Clone + 'static {
    /// Milliseconds since 1970. May jump either way.
    fn wall_ms(&self) -> u64;
    /// Uniform random bits; not for secrets.
    fn random_u64(&self) -> u64;
}

/// One flat folder of files with direct, durable I/O. Offsets, lengths and buffers are multiples
/// of [`crate::limits::BLOCK_LEN`].
pub trait Disk: Clone + 'static {
    /// An open file.
    type File: File;

    /// The names in the folder, in any order.
    fn list(&self) -> impl Future<Output = io::Result<Vec<String>>>;
    /// Makes a file of `len` zeros, really written; it and its name are durable when this returns.
    /// An existing file of that name is replaced.
    fn create(&self, name: &str, len: u64) -> impl Future<Output = io::Result<Self::File>>;
    /// Opens a file for reading and durable writing.
    fn open(&self, name: &str) -> impl Future<Output = io::Result<Self::File>>;
    /// Renames a file, replacing `to`; durable when this returns.
    fn rename(&self, from: &str, to: &str) -> impl Future<Output = io::Result<()>>;
    /// Removes a file; durable when this returns.
    fn remove(&self, name: &str) -> impl Future<Output = io::Result<()>>;
    /// Bytes that can still be written to the disk on which the folder is.
    fn free_bytes(&self) -> impl Future<Output = io::Result<u64>>;
}

/// An open file of a [`Disk`].
pub trait File: 'static {
    /// Memory that this file can write without copying.
    type Buffer: AsRef<[u8]> + AsMut<[u8]> + 'static;

    /// Size in bytes.
    fn len(&self) -> u64;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// A buffer of `len` bytes with any content.
    fn buffer(&self, len: usize) -> Self::Buffer;
    /// Writes the whole buffer; it is on stable storage when this returns.
    fn write_at(&self, buffer: Self::Buffer, offset: u64) -> impl Future<Output = io::Result<()>>;
    /// Reads `len` bytes; fewer only at the end of the file.
    fn read_at(&self, offset: u64, len: usize) -> impl Future<Output = io::Result<Vec<u8>>>;
}

/// The class of a message from one shard to another. Between nodes each class has its own connection,
/// so messages of one class do not wait behind those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MessageClass {
    /// Messages that must not wait: heartbeats, votes and small appends.
    Control,
    /// Large messages: snapshots, and entries for a replica that catches up. The bytes under way are
    /// limited; further messages wait.
    Bulk,
    /// Clients' requests that one shard forwards to another ([`crate::gateway`]). They delay no
    /// message of a replica.
    Clients,
}

impl std::fmt::Display for MessageClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            MessageClass::Control => "control",
            MessageClass::Bulk => "bulk",
            MessageClass::Clients => "clients",
        })
    }
}

/// Messages between shards, on this node and on others.
pub trait Transport: Clone + 'static {
    /// Sends one request to the shard at `to` and waits for its answer. Of several that are under
    /// way to one shard of one class, the one that was sent first is met there first, or the later
    /// ones fail, or the first never has an answer: replication sends ahead and relies on it.
    ///
    /// # Errors
    /// The other side cannot be reached now. [`io::ErrorKind::NotConnected`],
    /// [`io::ErrorKind::ConnectionRefused`], [`io::ErrorKind::PermissionDenied`] (the other side refuses
    /// this node) and [`io::ErrorKind::WouldBlock`]: the request was not sent. Otherwise nothing is known of its fate.
    fn call(
        &self,
        to: Location,
        class: MessageClass,
        request: Bytes,
    ) -> impl Future<Output = io::Result<Bytes>>;
}

/// Whether a shard that gave no answer has done nothing either: it was not asked (see
/// [`Transport::call`]), or did not understand the request.
pub fn is_unsent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotConnected
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::WouldBlock
            | io::ErrorKind::Unsupported
    )
}
