//! The reactor of a shard: one ring for its sockets, files and timers, on the executor's thread.
//!
//! glommio pins the thread and runs the tasks; everything that they wait for comes from here.
//! glommio's own reactor would do, too, but at each sleep it makes two passes over three rings,
//! with up to six system calls and timers that are armed and cancelled: a quarter of the cost of a
//! get, and more of a lone put. Here a sleep is one `io_uring_enter`, which also submits everything
//! that the tasks have asked for since the last one.
//!
//! The reactor is a task that is always ready, in the one queue of all tasks. So each pass over the
//! queue ends with it: it submits, takes completions and wakes the tasks that wait for them. If no
//! other task has run since its last turn, the queue is empty, and it sleeps in the kernel until
//! something completes or the next timer is due. To know that, it counts the polls of tasks, so all
//! tasks must be spawned by [`spawn_local`].
//!
//! Three things follow. glommio's own timers, sockets and channels, which need its reactor, are not
//! used anywhere. A wake from another thread must come through [`cross_thread`]. And glommio never
//! parks, so its bug of parking for ever with runnable tasks cannot happen: it parks when no task
//! is ready, which never holds, or when its preemption timer has fired, which it never does
//! ([`PREEMPT_TIMER`]).

mod cross_thread;
mod file;
mod helper;
mod ring;
mod socket;
mod stalls;
#[cfg(test)]
mod tests;
mod timers;
mod transfer;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use glommio::Task;
use pin_project_lite::pin_project;
use rangedb_engine::boot_time::BootTime;
use rangedb_engine::distribution::Distribution;

use super::clock;
use cross_thread::WakeQueue;
pub use cross_thread::{CrossThread, WakerSlot, cross_thread};
pub use file::{read_at, write_at};
use helper::Helper;
pub use helper::blocking;
use helper::resolving;
use ring::Ring;
pub use ring::Unsupported;
pub use socket::{TcpListener, TcpStream, Traffic};
use stalls::Stalls;
pub use timers::Sleep;
use timers::Timers;
pub use transfer::AlignedBuffer;

/// The preemption timer for glommio's executors, too long to fire. After a run of tasks of this
/// length glommio would turn to its own reactor, on which nothing waits.
pub const PREEMPT_TIMER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

thread_local! {
    static CURRENT: RefCell<Option<Rc<Reactor>>> = const { RefCell::new(None) };
    /// How many polls and ends of tasks there were on this thread.
    static POLLS: Cell<u64> = const { Cell::new(0) };
    /// When the present pass over the tasks that are ready began, and for how long tasks that can stop
    /// have worked in it.
    static PASS: Cell<Option<(BootTime, Duration)>> = const { Cell::new(None) };
}

/// Everything that the tasks of one thread may wait for.
pub struct Reactor {
    ring: RefCell<Ring>,
    timers: Timers,
    wake_queue: WakeQueue,
    /// Runs blocking work for files.
    helper: Helper,
    /// Resolves names.
    resolver: Helper,
    started: BootTime,
    slept: Cell<Duration>,
    longest_stall: Cell<Duration>,
    stalls: Stalls,
}

/// How busy the thread is.
#[derive(Clone, Debug)]
pub struct Load {
    /// Time in which it did not sleep.
    pub busy: Duration,
    /// The longest time by which a timer was late.
    pub longest_stall: Duration,
    /// How often a task kept the thread from all others for 5 ms or longer, by the task's name.
    pub stalls: Vec<(String, u64)>,
    /// How long those tasks did so, in microseconds.
    pub stall_micros: Distribution,
}

impl Reactor {
    fn new() -> Result<Reactor, Unsupported> {
        let wake_queue = WakeQueue::new().map_err(Unsupported::Kernel)?;
        Ok(Reactor {
            ring: RefCell::new(Ring::new(&wake_queue)?),
            timers: Timers::default(),
            wake_queue,
            helper: Helper::default(),
            resolver: Helper::default(),
            started: clock::now(),
            slept: Cell::default(),
            longest_stall: Cell::default(),
            stalls: Stalls::default(),
        })
    }

    /// The reactor of this thread.
    ///
    /// # Panics
    /// The thread has none: it does not run in [`drive`].
    fn here() -> Rc<Reactor> {
        let here = CURRENT.with_borrow(Clone::clone);
        here.expect("only what runs in a reactor's tasks waits for it")
    }

    /// The reactor of this thread, made if there is none.
    fn here_or_new() -> Result<Rc<Reactor>, Unsupported> {
        CURRENT.with_borrow_mut(|current| {
            if let Some(reactor) = current {
                return Ok(reactor.clone());
            }
            let reactor = Rc::new(Reactor::new()?);
            *current = Some(reactor.clone());
            Ok(reactor)
        })
    }

    /// The reactor's task. Ends once `ended` is set.
    async fn run(self: Rc<Reactor>, ended: Rc<Cell<bool>>) {
        let mut woken = Vec::new();
        // Tasks may have been spawned before this one: the first turn must not sleep.
        let mut seen = POLLS.get().wrapping_sub(1);
        while !ended.get() {
            let polls = POLLS.get();
            let others_ran = std::mem::replace(&mut seen, polls) != polls;
            let ended = self.turn(!others_ran, &mut woken);
            woken.drain(..).for_each(Waker::wake);
            PASS.set(Some((ended, Duration::ZERO)));
            yield_now().await;
        }
    }

    /// Submits requests, and adds the wakers of what has completed. May sleep if nothing has. Gives the time
    /// of its end. Reading the clock costs as much as a short poll, so it is read once where it need not be
    /// read before a sleep, too.
    fn turn(&self, may_sleep: bool, woken: &mut Vec<Waker>) -> BootTime {
        let now = match may_sleep {
            true => clock::now(),
            false => stalls::since(),
        };
        let late = self.timers.take_due(now, woken);
        self.longest_stall.set(self.longest_stall.get().max(late));
        self.wake_queue.take(woken);
        let mut ring = self.ring.borrow_mut();
        ring.take_completed(woken);
        if !may_sleep || !woken.is_empty() {
            ring.submit(woken);
            return stalls::ran(stalls::name_of::<Reactor>());
        }
        let limit = self.timers.next().map(|next| next - now);
        if !self.wake_queue.expect() {
            return now;
        }
        ring.sleep(limit, woken);
        self.wake_queue.awake(woken);
        let awake = clock::now();
        stalls::begin(awake);
        self.slept.set(self.slept.get() + (awake - now));
        self.timers.take_due(awake, woken);
        awake
    }
}

pin_project! {
    /// A task whose polls are counted and timed.
    struct Counted<F> {
        #[pin]
        future: F,
        name: &'static str,
    }

    impl<F> PinnedDrop for Counted<F> {
        // Dropping a task may wake others, so it counts, too.
        fn drop(this: Pin<&mut Self>) {
            let _ = this;
            POLLS.set(POLLS.get().wrapping_add(1));
        }
    }
}

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        POLLS.set(POLLS.get().wrapping_add(1));
        let task = self.project();
        let polled = task.future.poll(cx);
        stalls::ran(task.name);
        polled
    }
}

/// Spawns a task on this thread's executor. The task ends when its handle is dropped.
pub fn spawn_local<F: Future + 'static>(future: F) -> Task<F::Output> {
    spawn_named(stalls::name_of::<F>(), future)
}

/// As [`spawn_local`], for a future that wraps the one of type `Named`.
pub(super) fn spawn_for<Named, F: Future + 'static>(future: F) -> Task<F::Output> {
    spawn_named(stalls::name_of::<Named>(), future)
}

fn spawn_named<F: Future + 'static>(name: &'static str, future: F) -> Task<F::Output> {
    #[expect(clippy::disallowed_methods, reason = "here it is counted")]
    glommio::spawn_local(Counted { future, name })
}

/// Runs a future on this thread's executor while its tasks may wait for the reactor. The executor
/// must have been built with [`PREEMPT_TIMER`].
///
/// # Errors
/// The kernel lacks something that the ring needs.
pub async fn drive<F: Future>(future: F) -> Result<F::Output, Unsupported> {
    let reactor = Reactor::here_or_new()?;
    stalls::begin(clock::now());
    let ended = Rc::new(Cell::new(false));
    #[expect(clippy::disallowed_methods, reason = "it is the one that counts")]
    let turning = glommio::spawn_local(reactor.run(ended.clone()));
    let name = stalls::name_of::<F>();
    let result = Counted { future, name }.await;
    ended.set(true);
    turning.await;
    Ok(result)
}

/// Lets the other tasks run before the calling one goes on.
pub async fn yield_now() {
    glommio::executor().yield_now().await;
}

/// How long the present pass over the tasks that are ready has taken until `now`. What has arrived since
/// it began waits for its end.
pub fn pass_has_taken(now: BootTime) -> Duration {
    PASS.get().map_or(Duration::ZERO, |(began, _)| now - began)
}

/// For how long the tasks that can stop have worked in the present pass.
pub fn worked_in_pass() -> Duration {
    PASS.get().map_or(Duration::ZERO, |(_, worked)| worked)
}

/// Notes that a task that can stop has worked for this long.
pub fn has_worked(time: Duration) {
    PASS.set(PASS.get().map(|(began, worked)| (began, worked + time)));
}

/// How busy this thread is.
pub fn load() -> Load {
    let reactor = Reactor::here();
    Load {
        busy: (clock::now() - reactor.started).saturating_sub(reactor.slept.get()),
        longest_stall: reactor.longest_stall.get(),
        stalls: reactor.stalls.counts(),
        stall_micros: reactor.stalls.micros(),
    }
}
