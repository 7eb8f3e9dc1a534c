//! An executor in virtual time. It runs on one thread, the seed chooses the next task, and time
//! advances only when no task can run.
//!
//! Each task belongs to a [`Host`]. A crash drops all tasks of a host at once, without running
//! their code further; a pause holds them back. The clock of a machine may run a little faster or
//! slower than virtual time. A hash records everything that happens (the trace).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use super::random::Random;

/// A unit of crashes: one life of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(pub u32);

/// The host of the clients and of the test itself; it never crashes.
pub const OUTSIDE: Host = Host(0);

impl Host {
    /// The host of a machine's life with this number.
    pub fn of(machine: u16, life: u16) -> Host {
        Host(u32::from(machine) << 16 | u32::from(life))
    }

    /// The machine's number.
    pub fn machine(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

/// The time at the start of a run: the machines have been up for a while.
const BOOTED: Duration = Duration::from_secs(3600);
/// A run with more steps than this has a livelock.
const STEPS_MAX: u64 = 20_000_000;

type Task = Pin<Box<dyn Future<Output = ()>>>;

struct Slot {
    host: Host,
    /// `None` while the task is polled.
    task: Option<Task>,
    waker: Waker,
}

/// The numbers of woken tasks, shared with their wakers.
type Woken = Arc<Mutex<Vec<u64>>>;

struct TaskWaker {
    id: u64,
    woken: Woken,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(self.id);
    }
}

/// The executor of one run.
pub struct Executor {
    random: Random,
    now: Cell<Duration>,
    host: Cell<Host>,
    tasks: RefCell<BTreeMap<u64, Slot>>,
    next_task: Cell<u64>,
    woken: Woken,
    ready: RefCell<Vec<u64>>,
    queued: RefCell<HashSet<u64>>,
    timers: RefCell<BTreeMap<(Duration, u64), Waker>>,
    next_timer: Cell<u64>,
    /// By how many millionths each machine's clock runs too fast.
    drifts: RefCell<BTreeMap<u16, i64>>,
    /// How long each machine's clock has stood still.
    stood_still: RefCell<BTreeMap<u16, Duration>>,
    /// Paused machines, and their tasks that were woken meanwhile.
    paused: RefCell<BTreeMap<u16, Vec<u64>>>,
    /// Lives that have ended.
    ended: RefCell<HashSet<Host>>,
    /// How often tasks of each machine were polled since the count began, and the poll at which a
    /// machine is paused.
    polls: RefCell<BTreeMap<u16, u64>>,
    stop_at: Cell<Option<(u16, u64)>>,
    has_stopped: Cell<bool>,
    /// Wakers of tasks elsewhere that wait until a machine runs again.
    waiting: RefCell<Vec<(u16, Waker)>>,
    trace: Cell<u64>,
    steps: Cell<u64>,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Executor>>> = const { RefCell::new(None) };
}

/// The executor of this thread.
pub fn current() -> Rc<Executor> {
    CURRENT
        .with_borrow(|current| current.clone())
        .expect("runs within a simulation")
}

/// The executor of this thread, if there is one.
pub fn running() -> Option<Rc<Executor>> {
    CURRENT
        .try_with(|current| current.borrow().clone())
        .ok()
        .flatten()
}

/// Leaks the simulation of this thread. After a panic, its destructors cannot be trusted.
pub fn abandon() {
    std::mem::forget(CURRENT.take());
}

impl Executor {
    /// Makes the executor of a seed, which becomes this thread's executor.
    pub fn start(seed: u64) -> Rc<Executor> {
        let executor = Rc::new(Executor {
            random: Random::new(seed, 1),
            now: Cell::new(BOOTED),
            host: Cell::new(OUTSIDE),
            tasks: RefCell::default(),
            next_task: Cell::new(0),
            woken: Woken::default(),
            ready: RefCell::default(),
            queued: RefCell::default(),
            timers: RefCell::default(),
            next_timer: Cell::new(0),
            drifts: RefCell::default(),
            stood_still: RefCell::default(),
            paused: RefCell::default(),
            ended: RefCell::default(),
            polls: RefCell::default(),
            stop_at: Cell::new(None),
            has_stopped: Cell::new(false),
            waiting: RefCell::default(),
            trace: Cell::new(0xcbf2_9ce4_8422_2325),
            steps: Cell::new(0),
        });
        CURRENT.with_borrow_mut(|current| *current = Some(executor.clone()));
        executor
    }

    /// Ends this thread's simulation and drops all its tasks.
    pub fn end(self: &Rc<Executor>) {
        let hosts: HashSet<Host> = self.tasks.borrow().values().map(|slot| slot.host).collect();
        hosts.into_iter().for_each(|host| self.crash(host));
        CURRENT.with_borrow_mut(|current| *current = None);
    }

    /// The virtual time, counted from the boot of the machines.
    pub fn now(&self) -> Duration {
        self.now.get()
    }

    /// The time on the clock of the current host.
    pub fn local_now(&self) -> Duration {
        let now = self.now.get() - self.stood_still();
        scale(now, 1_000_000 + self.drift(), 1_000_000)
    }

    /// The virtual time at which the current host's clock shows `local`.
    pub fn when(&self, local: Duration) -> Duration {
        let at = scale(local, 1_000_000, 1_000_000 + self.drift()) + self.stood_still();
        // Round up, so that no timer fires before its time.
        at + Duration::from_nanos(u64::from(self.drift() != 0))
    }

    fn stood_still(&self) -> Duration {
        let stood_still = self.stood_still.borrow();
        let machine = self.host.get().machine();
        stood_still.get(&machine).copied().unwrap_or_default()
    }

    /// Holds back a machine's clock by `time`. The machine must have been paused for at least that
    /// long, so that its clock never goes backwards.
    pub fn hold_clock(&self, machine: u16, time: Duration) {
        *self.stood_still.borrow_mut().entry(machine).or_default() += time;
    }

    fn drift(&self) -> i64 {
        let drifts = self.drifts.borrow();
        let machine = self.host.get().machine();
        drifts.get(&machine).copied().unwrap_or_default()
    }

    /// Sets by how many millionths a machine's clock runs too fast. This is allowed only before the
    /// machine starts, since the clock would jump.
    pub fn set_drift(&self, machine: u16, millionths: i64) {
        self.drifts.borrow_mut().insert(machine, millionths);
    }

    /// Pauses a machine until [`Executor::resume`].
    pub fn pause(&self, machine: u16) {
        self.paused.borrow_mut().entry(machine).or_default();
        crate::invariants::deadlines::paused();
        self.note(u64::from(machine) | 1 << 41);
    }

    /// Lets a paused machine run again.
    pub fn resume(&self, machine: u16) {
        let held = self.paused.borrow_mut().remove(&machine);
        let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        woken.extend(held.into_iter().flatten());
        drop(woken);
        let mut waiting = self.waiting.borrow_mut();
        let freed = waiting.extract_if(.., |(paused, _)| *paused == machine);
        let freed: Vec<Waker> = freed.map(|(_, waker)| waker).collect();
        drop(waiting);
        freed.into_iter().for_each(Waker::wake);
    }

    /// Starts to count polls of tasks. With `stop_at`, pauses a machine after this many polls of
    /// its own tasks.
    pub fn count_polls(&self, stop_at: Option<(u16, u64)>) {
        self.polls.borrow_mut().clear();
        self.stop_at.set(stop_at);
        self.has_stopped.set(false);
    }

    /// The polls counted so far, by machine.
    pub fn polls(&self) -> BTreeMap<u16, u64> {
        self.polls.borrow().clone()
    }

    /// Whether a machine has been paused at its poll.
    pub fn has_stopped(&self) -> bool {
        self.has_stopped.get()
    }

    fn count_poll(&self, machine: u16) {
        let mut polls = self.polls.borrow_mut();
        let polls = polls.entry(machine).or_default();
        *polls += 1;
        if self.stop_at.get() == Some((machine, *polls)) {
            self.stop_at.set(None);
            self.has_stopped.set(true);
            self.pause(machine);
        }
    }

    /// Whether the host's machine is paused. If it is, wakes `waker` when the machine runs again.
    pub fn waits_for(&self, host: Host, waker: Option<&Waker>) -> bool {
        let is_paused = self.paused.borrow().contains_key(&host.machine());
        if let Some(waker) = waker.filter(|_| is_paused) {
            let waiting = (host.machine(), waker.clone());
            self.waiting.borrow_mut().push(waiting);
        }
        is_paused
    }

    /// Whether a host has crashed or stopped.
    pub fn has_ended(&self, host: Host) -> bool {
        self.ended.borrow().contains(&host)
    }

    /// The machine of the current host.
    pub fn machine(&self) -> u16 {
        self.host.get().machine()
    }

    /// Runs `work` as if the host did: with its clock, and with new tasks of its own.
    pub fn on_host<R>(&self, host: Host, work: impl FnOnce() -> R) -> R {
        let before = self.host.replace(host);
        let result = work();
        self.host.set(before);
        result
    }

    /// The hash of everything that has happened so far.
    pub fn trace(&self) -> u64 {
        self.trace.get()
    }

    /// Adds a number to the trace.
    pub fn note(&self, what: u64) {
        let hash = (self.trace.get() ^ what).wrapping_mul(0x0100_0000_01b3);
        self.trace.set(hash.rotate_left(23));
    }

    /// Adds a task to the current host.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.spawn_on(self.host.get(), task);
    }

    /// Adds a task to a host.
    pub fn spawn_on(&self, host: Host, task: impl Future<Output = ()> + 'static) {
        let id = self.next_task.get();
        self.next_task.set(id + 1);
        let waker = Waker::from(Arc::new(TaskWaker {
            id,
            woken: self.woken.clone(),
        }));
        let slot = Slot {
            host,
            task: Some(Box::pin(task)),
            waker,
        };
        self.tasks.borrow_mut().insert(id, slot);
        self.woken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(id);
    }

    /// Drops all tasks of a host.
    pub fn crash(&self, host: Host) {
        self.ended.borrow_mut().insert(host);
        let mut dropped = Vec::new();
        self.tasks.borrow_mut().retain(|_, slot| {
            if slot.host == host {
                dropped.push(slot.task.take());
            }
            slot.host != host
        });
        // Destructors may spawn tasks; these are dropped, too.
        let before = self.host.replace(Host(u32::MAX));
        drop(dropped);
        self.host.set(before);
        self.tasks
            .borrow_mut()
            .retain(|_, slot| slot.host != Host(u32::MAX));
        self.note(u64::from(host.0) | 1 << 40);
    }

    /// Sets a timer that wakes `waker`; returns its key for [`Executor::clear_timer`].
    pub fn set_timer(&self, at: Duration, waker: Waker) -> (Duration, u64) {
        let id = self.next_timer.get();
        self.next_timer.set(id + 1);
        self.timers.borrow_mut().insert((at, id), waker);
        (at, id)
    }

    /// Removes a timer.
    pub fn clear_timer(&self, timer: (Duration, u64)) {
        let waker = self.timers.borrow_mut().remove(&timer);
        drop(waker);
    }

    /// Runs tasks until the future is done.
    ///
    /// # Errors
    /// No task can run any more, or the run takes too many steps.
    pub fn block_on<T: 'static>(
        self: &Rc<Executor>,
        future: impl Future<Output = T> + 'static,
    ) -> Result<T, String> {
        let result = Rc::new(RefCell::new(None));
        let into = result.clone();
        self.spawn_on(OUTSIDE, async move {
            let value = future.await;
            *into.borrow_mut() = Some(value);
        });
        loop {
            if let Some(value) = result.borrow_mut().take() {
                return Ok(value);
            }
            if !self.step() {
                return Err(format!("deadlock at {:?}: no task can run", self.now.get()));
            }
            if self.steps.get() > STEPS_MAX {
                return Err(format!("livelock at {:?}: too many steps", self.now.get()));
            }
        }
    }

    /// Polls a future on the caller's stack, and tasks in between, until it is done. For
    /// conformance tests, whose futures borrow.
    pub fn run_here<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                return value;
            }
            self.step();
        }
    }

    /// Polls one task or advances the time; `false` if nothing is left to do.
    fn step(&self) -> bool {
        self.steps.set(self.steps.get() + 1);
        {
            let mut woken =
                std::mem::take(&mut *self.woken.lock().unwrap_or_else(PoisonError::into_inner));
            // The order of wake-ups may be random: tokio's `watch` picks a random one of its lists
            // of wakers.
            woken.sort_unstable();
            let mut queued = self.queued.borrow_mut();
            let fresh = woken.into_iter().filter(|id| queued.insert(*id));
            self.ready.borrow_mut().extend(fresh);
        }
        let count = self.ready.borrow().len();
        if count == 0 {
            return self.advance();
        }
        let pick = self.random.below(count as u64) as usize;
        let id = self.ready.borrow_mut().swap_remove(pick);
        self.queued.borrow_mut().remove(&id);
        self.poll(id);
        true
    }

    fn poll(&self, id: u64) {
        let taken = self
            .tasks
            .borrow_mut()
            .get_mut(&id)
            .and_then(|slot| Some((slot.task.take()?, slot.host, slot.waker.clone())));
        let Some((mut task, host, waker)) = taken else {
            return;
        };
        if let Some(held) = self.paused.borrow_mut().get_mut(&host.machine()) {
            held.push(id);
            if let Some(slot) = self.tasks.borrow_mut().get_mut(&id) {
                slot.task = Some(task);
            }
            return;
        }
        self.count_poll(host.machine());
        self.note(id);
        let before = self.host.replace(host);
        let polled = task.as_mut().poll(&mut Context::from_waker(&waker));
        self.host.set(before);
        let mut tasks = self.tasks.borrow_mut();
        match polled {
            Poll::Ready(()) => drop(tasks.remove(&id)),
            Poll::Pending => {
                // The task's host crashed while the task ran: the task is dropped.
                if let Some(slot) = tasks.get_mut(&id) {
                    slot.task = Some(task);
                    return;
                }
            }
        }
        drop(tasks);
    }

    fn advance(&self) -> bool {
        let Some(((at, _), waker)) = self.timers.borrow_mut().pop_first() else {
            return false;
        };
        self.now.set(self.now.get().max(at));
        self.note(at.as_nanos() as u64);
        waker.wake();
        true
    }
}

fn scale(time: Duration, by: i64, of: i64) -> Duration {
    let nanos = time.as_nanos() * u128::from(by.unsigned_abs()) / u128::from(of.unsigned_abs());
    Duration::from_nanos(nanos as u64)
}

/// Waits until a point in virtual time, whatever the host's clock shows.
pub async fn sleep_until(at: Duration) {
    let sleep = current().on_host(OUTSIDE, || {
        use openraft_rt::AsyncRuntime;
        let left = at.saturating_sub(current().now());
        super::runtime::SimRuntime::sleep(left)
    });
    OnHost::new(OUTSIDE, sleep).await;
}

/// A future that runs as part of a host: by its clock, not while it is paused, and not after its
/// end.
pub struct OnHost<F> {
    host: Host,
    future: Pin<Box<F>>,
}

impl<F: Future> OnHost<F> {
    /// Makes the future a part of `host`.
    pub fn new(host: Host, future: F) -> OnHost<F> {
        let future = Box::pin(future);
        OnHost { host, future }
    }
}

impl<F: Future> Future for OnHost<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let executor = current();
        let host = self.host;
        if executor.has_ended(host) || executor.waits_for(host, Some(cx.waker())) {
            return Poll::Pending;
        }
        executor.on_host(host, || self.future.as_mut().poll(cx))
    }
}
