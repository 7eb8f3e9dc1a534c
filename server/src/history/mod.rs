//! The history of the node: its work by the minute for a day and by the hour for 90 days, and its events.
//! It lies in the folder `history` of the data folder.
//!
//! Nothing depends on it. One thread of its own does all that touches its files; others send it rows
//! through a bounded queue, and rows that do not fit are counted and lost. Where the disk is full the
//! history pauses ([`recorder`]), where its files are damaged they are put aside.
//!
//! The files are those of fjall ([`store`]), which may panic where they are damaged. A panic on the
//! history's thread does not end the process: [`take_over`] has a new thread begin with an empty
//! database, and the panic hook keeps the old one for ever, since a release build cannot unwind. After
//! [`PANICS_MAX`] panics the history ends until the next start.
//!
//! Events are log lines with a field `event` ([`layer`]), and the crash of the run before
//! ([`last_words`]). Work is collected by the admin pages' side, which asks the shards.

mod fault;
#[cfg(test)]
mod fuzz;
pub mod last_words;
pub mod layer;
pub mod record;
mod recorder;
mod seal;
mod store;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rangedb_engine::env::Clock;
use rangedb_protocol::admin::{NodeHistory, Step};
use tokio::sync::oneshot;

use crate::env::{SystemClock, threads};
use record::{Event, Work};
use recorder::{Place, Recorder};

/// Messages that may wait for the thread.
const QUEUE_MAX: usize = 1024;
/// How often the thread looks at what is due without a message.
const TICK_INTERVAL: Duration = Duration::from_secs(10);
/// How long a clean stop waits for the thread.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// After so many panics the history ends.
const PANICS_MAX: u32 = 3;
const HAS_ENDED: &str = "the history of this node ended after faults of its files: the node's log tells \
                         of them, and the next start begins it anew";

/// A part of the history that is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Query {
    /// The earliest time, if there is one, in milliseconds since 1970.
    pub from_ms: Option<u64>,
    /// The latest time, if there is one.
    pub to_ms: Option<u64>,
    /// How work is summed up.
    pub step: Step,
    /// Whether the histograms of latencies are wanted.
    pub histograms: bool,
}

impl Query {
    /// What is wanted between two times, in milliseconds since 1970, or before or after one of them.
    pub fn of((from_ms, to_ms): (Option<u64>, Option<u64>), step: Step, histograms: bool) -> Query {
        Query {
            from_ms,
            to_ms,
            step,
            histograms,
        }
    }

    fn holds(&self, t: u64) -> bool {
        self.from_ms.is_none_or(|from| t >= from) && self.to_ms.is_none_or(|to| t <= to)
    }
}

enum Message {
    Event(u64, Event),
    Minute(u64, Work),
    Ask(Query, oneshot::Sender<Result<NodeHistory, String>>),
    Stop(SyncSender<()>),
}

/// The way to the history's thread. Clones lead to the same one.
#[derive(Clone)]
pub struct History(Arc<Shared>);

struct Shared {
    queue: SyncSender<Message>,
    messages: Mutex<Receiver<Message>>,
    place: OnceLock<Place>,
    /// Whether it ended after panics, or for want of a thread.
    has_ended: AtomicBool,
    panics: AtomicU32,
    dropped: AtomicU64,
}

thread_local! {
    /// On the history's thread: the history.
    static OWN: RefCell<Option<History>> = const { RefCell::new(None) };
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("History").finish_non_exhaustive()
    }
}

impl History {
    /// A history that keeps what it is given until [`History::start`] says where to.
    pub fn new() -> History {
        let (queue, messages) = mpsc::sync_channel(QUEUE_MAX);
        History(Arc::new(Shared {
            queue,
            messages: Mutex::new(messages),
            place: OnceLock::new(),
            has_ended: AtomicBool::new(false),
            panics: AtomicU32::new(0),
            dropped: AtomicU64::new(0),
        }))
    }

    fn has_ended(&self) -> bool {
        self.0.has_ended.load(Ordering::SeqCst)
    }

    /// Starts the thread, for a node with this data folder, and tells it of the crash of the run before.
    pub fn start(&self, data_dir: &Path, node: u64) {
        let place = Place {
            data_dir: data_dir.to_owned(),
            node,
        };
        if self.0.place.set(place.clone()).is_err() {
            return;
        }
        self.spawn(move |recorder| {
            match last_words::begin(&place.folder()) {
                Ok((crash, file)) => {
                    last_words::keep_in(file);
                    if let Some(crash) = crash {
                        tell_of(&crash, recorder);
                    }
                }
                Err(error) => tracing::warn!(
                    %error,
                    "how this run ends will not be known at the next start"
                ),
            }
            recorder.open();
        });
    }

    /// Starts a thread that begins with `begin`.
    fn spawn(&self, begin: impl FnOnce(&mut Recorder) + Send + 'static) {
        let history = self.clone();
        let work = move || {
            threads::be_nice();
            OWN.set(Some(history.clone()));
            let worked = catch_unwind(AssertUnwindSafe(|| {
                if let Some(place) = history.0.place.get() {
                    let mut recorder = Recorder::new(place.clone());
                    begin(&mut recorder);
                    history.work(&mut recorder);
                }
            }));
            if worked.is_err() {
                take_over("its thread panicked");
            }
        };
        let thread = std::thread::Builder::new().name("history".to_owned());
        if let Err(error) = thread.spawn(work) {
            tracing::warn!(%error, "the history of this node is off, as it has no thread");
            self.0.has_ended.store(true, Ordering::SeqCst);
        }
    }

    /// Carries out messages until one says to stop.
    fn work(&self, recorder: &mut Recorder) {
        loop {
            let next = {
                let messages = self.0.messages.lock();
                let messages = messages.unwrap_or_else(PoisonError::into_inner);
                messages.recv_timeout(TICK_INTERVAL)
            };
            match next {
                Ok(Message::Event(t, event)) => recorder.event(t, &event),
                Ok(Message::Minute(t, work)) => {
                    recorder.minute(t, &work);
                    recorder.tick();
                    last_words::touch();
                }
                Ok(Message::Ask(query, answer)) => {
                    let mut told = recorder.tell(&query);
                    if let Ok(told) = &mut told {
                        told.dropped += self.0.dropped.load(Ordering::Relaxed);
                    }
                    // The one who asked may no longer wait.
                    let _ = answer.send(told);
                }
                Ok(Message::Stop(done)) => {
                    recorder.sync();
                    // The one who stops may no longer wait.
                    let _ = done.try_send(());
                    return;
                }
                Err(RecvTimeoutError::Timeout) => {
                    recorder.tick();
                    last_words::touch();
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn send(&self, message: Message) {
        if !self.has_ended() && self.0.queue.try_send(message).is_err() {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Records an event that happens now.
    pub fn event(&self, event: Event) {
        self.send(Message::Event(SystemClock.wall_ms(), event));
    }

    /// Records the work of the minute that began at this time.
    pub fn minute(&self, t: u64, work: Work) {
        self.send(Message::Minute(t, work));
    }

    /// Asks for a part of the history.
    ///
    /// # Errors
    /// There is none, or it cannot be read now; the text says why.
    pub async fn ask(&self, query: Query) -> Result<NodeHistory, String> {
        if self.has_ended() {
            return Err(HAS_ENDED.to_owned());
        }
        if self.0.place.get().is_none() {
            return Err("this node has no history yet, as it has no data folder".to_owned());
        }
        let (answer, told) = oneshot::channel();
        if self.0.queue.try_send(Message::Ask(query, answer)).is_err() {
            return Err("the history is busy; try again".to_owned());
        }
        // A history that ends empties its queue, but may have done so before.
        if self.has_ended() {
            return Err(HAS_ENDED.to_owned());
        }
        let gone = |_| Err("the history could not be read; try again".to_owned());
        told.await.unwrap_or_else(gone)
    }

    /// Makes the history durable, and has the next start know that this run stopped cleanly. Waits for
    /// that at most 2 s.
    pub fn stop(&self) {
        let Some(place) = self.0.place.get() else {
            return;
        };
        let (done, is_done) = mpsc::sync_channel(1);
        if !self.has_ended() && self.0.queue.try_send(Message::Stop(done)).is_ok() {
            // A thread that hangs must not keep the node from stopping.
            let _ = is_done.recv_timeout(STOP_TIMEOUT);
        }
        last_words::end(&place.folder());
    }
}

impl Default for History {
    fn default() -> History {
        History::new()
    }
}

/// Records the crash of the run before.
fn tell_of(crash: &last_words::Crash, recorder: &mut Recorder) {
    let words = match crash.words.as_str() {
        "" => {
            "the run before this one ended without a clean stop and without last words: it was killed, \
             or the machine went down"
        }
        words => words,
    };
    let first = words.lines().next().unwrap_or_default();
    tracing::warn!(
        last_words = first,
        "the run before this one did not stop cleanly"
    );
    // What the run wrote in its last minute is older than its end.
    let t = recorder.last_t().unwrap_or_default().max(crash.t);
    recorder.event(t, &Event::new("crash", words));
}

/// If this thread is the history's, which panicked: puts the database aside and has another thread go
/// on with an empty one. Gives whether it is.
pub fn take_over(panic: &str) -> bool {
    let Some(history) = OWN.take() else {
        return false;
    };
    if let Some(place) = history.0.place.get() {
        place.put_aside(panic);
    }
    let panics = history.0.panics.fetch_add(1, Ordering::Relaxed) + 1;
    if panics < PANICS_MAX {
        history.spawn(Recorder::open);
        return true;
    }
    tracing::warn!(panic, "the history of this node ends until the next start");
    history.0.has_ended.store(true, Ordering::SeqCst);
    // Nobody answers those who have asked.
    let messages = history.0.messages.lock();
    let messages = messages.unwrap_or_else(PoisonError::into_inner);
    while messages.try_recv().is_ok() {}
    true
}
