//! The way of a client's request to a shard and of the answer back, as a network between them would have
//! it: requests come late, are lost or come twice, and answers are lost.
//!
//! What is asked runs on the node's host, by its clock, waits while the node is paused, and ends with it.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::{AsyncRuntime, Instant};
use rangedb_engine::error::Error;
use rangedb_engine::request::{Outcome, SessionPair, Target, Write};
use rangedb_engine::shard::{Shard, WriteRequest, WriteSink};
use tokio::sync::oneshot;

use super::executor::{self, Host, OUTSIDE, OnHost};
use super::random::Random;
use super::runtime::{SimInstant, SimRuntime};
use super::world::SimEnv;

/// A client gives up one try after this.
pub const TRY: Duration = Duration::from_millis(1500);

/// A shard that can be asked now.
#[derive(Clone)]
pub struct Reached {
    /// Where it runs.
    pub host: Host,
    /// The shard.
    pub shard: Shard<SimEnv>,
}

impl Reached {
    /// Asks at once. Only right after it was reached: by then it may be paused, or gone.
    pub fn ask<R>(&self, question: impl FnOnce(&Shard<SimEnv>) -> R) -> R {
        executor::current().on_host(self.host, || question(&self.shard))
    }

    /// Asks what takes time.
    pub async fn wait<R>(&self, question: impl Future<Output = R>) -> Option<R> {
        let asked = OnHost::new(self.host, question);
        SimRuntime::timeout(TRY, asked).await.ok()
    }
}

/// A write as a client asks for it.
#[derive(Clone)]
pub struct Asked {
    /// What to do.
    pub write: Write,
    /// The range that the client believes to own the key.
    pub target: Option<Target>,
    /// The write's name.
    pub session: SessionPair,
    /// How long the client waits, counted from when the request arrives.
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

/// Nobody ever answers; the client keeps waiting.
fn lose(mut answer: Answer) {
    executor::current().spawn_on(OUTSIDE, async move { answer.closed().await });
}

/// What happens between one client and all shards.
pub struct Road {
    random: Random,
    /// A request that is late comes within so many milliseconds.
    late_max_ms: u64,
    /// One of so many requests is late, is lost, comes twice, is not answered; 0: none.
    late_one_in: u64,
    lost_one_in: u64,
    twice_one_in: u64,
    unanswered_one_in: u64,
}

impl Road {
    /// The road of a client: every second one is as good as a call.
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

    /// Sends a write. The answer comes by the receiver, which fails at once if the node is gone. Says
    /// whether the request comes a second time, whatever becomes of the first.
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

/// Has a request arrive after some time.
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
        // One that is paused meets it when it runs again.
        while executor::current().waits_for(to.host, None) {
            SimRuntime::sleep(Duration::from_millis(1)).await;
        }
        // With a node that is gone the connection is, too.
        if !executor::current().has_ended(to.host) {
            write(&to);
        }
    });
}
