//! The road between a client and the shards. It stands for a network: requests arrive late, get
//! lost, or arrive twice, and answers get lost.
//!
//! A request runs as part of the node's host: by its clock, not while the node is paused, and not
//! after its end.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::{AsyncRuntime, Instant};
use rangedb_engine::error::Error;
use rangedb_engine::request::{Batch, Outcome, SessionPair, Target};
use rangedb_engine::shard::{Shard, WriteRequest, WriteSink};
use tokio::sync::oneshot;

use super::executor::{self, Host, OUTSIDE, OnHost};
use super::random::Random;
use super::runtime::{SimInstant, SimRuntime};
use super::world::SimEnv;

/// How long a client waits for one try.
pub const TRY: Duration = Duration::from_millis(1500);

/// A shard that can be asked at this moment.
#[derive(Clone)]
pub struct Reached {
    /// The host that the shard runs on.
    pub host: Host,
    /// The shard.
    pub shard: Shard<SimEnv>,
}

impl Reached {
    /// Asks the shard at once. Only right after it was reached: later it may be paused or gone.
    pub fn ask<R>(&self, question: impl FnOnce(&Shard<SimEnv>) -> R) -> R {
        executor::current().on_host(self.host, || question(&self.shard))
    }

    /// Asks something that takes time; `None` if there is no answer within [`TRY`].
    pub async fn wait<R>(&self, question: impl Future<Output = R>) -> Option<R> {
        let asked = OnHost::new(self.host, question);
        SimRuntime::timeout(TRY, asked).await.ok()
    }
}

/// A client's request for a write.
#[derive(Clone)]
pub struct Asked {
    /// What to do.
    pub write: Batch,
    /// The range that the client believes to own the key.
    pub target: Option<Target>,
    /// The session pair of the write.
    pub session: SessionPair,
    /// How long the client waits, counted from the request's arrival.
    pub patience: Option<Duration>,
}

type Answer = oneshot::Sender<Result<Outcome, Error>>;

struct Once {
    answer: RefCell<Option<Answer>>,
    is_lost: bool,
}

impl WriteSink for Once {
    fn complete(&self, _: u64, result: Result<Outcome, Error>) {
        let answer = self.answer.borrow_mut().take();
        let answer = answer.expect("a write is answered once");
        match self.is_lost {
            true => lose(answer),
            // The client may have given up.
            false => drop(answer.send(result)),
        }
    }
}

/// Keeps an answer from ever arriving; the client waits until it gives up.
fn lose(mut answer: Answer) {
    executor::current().spawn_on(OUTSIDE, async move { answer.closed().await });
}

/// The faults between one client and all shards.
pub struct Road {
    random: Random,
    /// A late request arrives within this many milliseconds.
    late_max_ms: u64,
    /// One request in this many is late, is lost, arrives twice, or gets no answer; 0: none.
    late_one_in: u64,
    lost_one_in: u64,
    twice_one_in: u64,
    unanswered_one_in: u64,
}

impl Road {
    /// Draws the faults of a client; for about half of the clients there are none.
    pub fn new(random: &Random) -> Road {
        let is_good = random.once_in(2);
        let one_in = |least: u64| match is_good || random.once_in(3) {
            true => 0,
            false => random.between(least, 10 * least),
        };
        Road {
            late_one_in: one_in(3),
            lost_one_in: one_in(6),
            twice_one_in: one_in(3),
            unanswered_one_in: one_in(6),
            late_max_ms: [5, 200, 3_000][random.below(3) as usize],
            random: random.clone(),
        }
    }

    /// Sends a write. The answer comes through the receiver, which fails at once if the node is
    /// gone. Also returns whether the request arrives a second time, independently of the first.
    pub fn send(
        &self,
        to: &Reached,
        asked: Asked,
    ) -> (oneshot::Receiver<Result<Outcome, Error>>, bool) {
        let (answer, receiver) = oneshot::channel();
        let happens = |one_in: u64| one_in > 0 && self.random.once_in(one_in);
        let late = || Duration::from_micros(self.random.below(self.late_max_ms * 1_000));
        let comes_twice = happens(self.twice_one_in);
        if comes_twice {
            let (nobody, _) = oneshot::channel();
            arrive(to.clone(), asked.clone(), late(), nobody, false);
        }
        if happens(self.lost_one_in) {
            lose(answer);
        } else {
            let after = match happens(self.late_one_in) {
                true => late(),
                false => Duration::ZERO,
            };
            let is_lost = happens(self.unanswered_one_in);
            arrive(to.clone(), asked, after, answer, is_lost);
        }
        (receiver, comes_twice)
    }
}

/// Makes a request arrive after some time.
fn arrive(to: Reached, asked: Asked, after: Duration, answer: Answer, is_lost: bool) {
    let sink = Rc::new(Once {
        answer: RefCell::new(Some(answer)),
        is_lost,
    });
    let write = move |to: &Reached| {
        to.ask(|shard| {
            let request = WriteRequest {
                target: asked.target,
                session: asked.session,
                deadline: asked.patience.map(|patience| SimInstant::now() + patience),
            };
            shard.write(asked.write, request, sink, 1);
        });
    };
    if after.is_zero() {
        return write(&to);
    }
    executor::current().spawn_on(OUTSIDE, async move {
        SimRuntime::sleep(after).await;
        // A paused node receives the request when it runs again.
        while executor::current().waits_for(to.host, None) {
            SimRuntime::sleep(Duration::from_millis(1)).await;
        }
        // The connection ends with its node, and the request with it.
        if !executor::current().has_ended(to.host) {
            write(&to);
        }
    });
}
