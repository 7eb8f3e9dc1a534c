//! The network between a client and the gateways of the nodes. Writes arrive late, get lost, or
//! arrive twice, and answers get lost.
//!
//! A request runs as part of the node's host: by its clock, not while the node is paused, and not
//! after its end.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::{AsyncRuntime, Env};
use rangedb_engine::error::Error;
use rangedb_engine::gateway::Gateway;
use rangedb_engine::gateway::message::{Body, Found, Reply};
use rangedb_engine::gateway::request::{Call, Caller};
use rangedb_engine::gateway::responder::{Responder, Response, Scanning};
use rangedb_engine::request::Target;
use rangedb_engine::types::Timestamp;
use tokio::sync::oneshot;

use super::executor::{self, Host, OUTSIDE};
use super::random::Random;
use super::runtime::SimRuntime;
use super::sim_env::SimEnv;
use crate::invariants;

/// How long a client waits for one try.
pub const TRY_TIMEOUT: Duration = Duration::from_millis(1500);

/// A gateway that can be asked at this moment.
#[derive(Clone)]
pub struct Reached {
    /// The host that the gateway runs on.
    pub host: Host,
    /// The gateway to ask.
    pub gateway: Gateway<SimEnv>,
}

impl Reached {
    /// Asks the gateway at once. Only right after it was reached: later it may be paused or gone.
    pub fn ask<R>(&self, look: impl FnOnce(&Gateway<SimEnv>) -> R) -> R {
        executor::current().on_host(self.host, || look(&self.gateway))
    }
}

/// A client's request.
#[derive(Clone)]
pub struct ClientRequest {
    /// The operation.
    pub body: Body,
    /// Whether the client follows routes.
    pub caller: Caller,
    /// The newest timestamp that the client has seen.
    pub token: Timestamp,
    /// The range that the client believes to own the key.
    pub target: Option<Target>,
    /// How long the client waits, counted from the request's arrival.
    pub timeout: Option<Duration>,
}

/// The response to a client's request.
#[derive(Clone, Debug)]
pub struct ClientResponse {
    /// The answer, with the time of the cluster.
    pub reply: Reply,
    /// Whether the request was a read that a majority has confirmed on the shard that was asked.
    pub was_confirmed: bool,
}

/// Takes the answer to one request.
struct Once {
    gateway: Gateway<SimEnv>,
    answer: RefCell<Option<oneshot::Sender<ClientResponse>>>,
    is_lost: bool,
    is_held: Cell<bool>,
    /// Whether it was held, and never sent to another shard.
    has_waited: Cell<bool>,
    due: invariants::deadlines::Due,
}

impl Responder for Once {
    type Ticket = ();
    type Refusal = Error;

    fn answer(&self, (): &(), now: Option<Timestamp>, answer: Result<Response<'_>, Error>) {
        let at = self.gateway.shard().location();
        invariants::deadlines::answered(&self.due, at, answer.as_ref().err());
        let result = answer.map(Found::from);
        let now = now.unwrap_or_else(|| self.gateway.shard().now());
        let was_confirmed = self.has_waited.get() && matches!(result, Ok(Found::Value(_)));
        let response = ClientResponse {
            reply: Reply { now, result },
            was_confirmed,
        };
        let answer = self.answer.borrow_mut().take();
        let answer = answer.expect("a request is answered once");
        match self.is_lost {
            true => lose(answer),
            // The client may have given up.
            false => drop(answer.send(response)),
        }
    }

    fn hold(&self, (): ()) -> Result<u64, Error> {
        self.gateway.begin();
        self.is_held.set(true);
        self.has_waited.set(true);
        Ok(0)
    }

    fn release(&self, _: u64) -> Option<()> {
        if !self.is_held.replace(false) {
            return None;
        }
        self.gateway.end();
        Some(())
    }

    fn scan(self: &Rc<Self>, _: u64, scanning: Scanning) {
        drop(SimRuntime::spawn(scanning));
    }

    fn departed(&self, (): &()) {
        self.has_waited.set(false);
    }
}

/// Keeps an answer from ever arriving; the client waits until it gives up.
fn lose(mut answer: oneshot::Sender<ClientResponse>) {
    executor::current().spawn_on(OUTSIDE, async move { answer.closed().await });
}

/// The faults between one client and all gateways.
pub struct ClientNetwork {
    random: Random,
    /// A late request arrives within this many milliseconds.
    late_max_ms: u64,
    /// One write in this many is late, is lost, arrives twice, or gets no answer; 0: none.
    late_one_in: u64,
    lost_one_in: u64,
    twice_one_in: u64,
    unanswered_one_in: u64,
}

impl ClientNetwork {
    /// Draws the faults of a client; for about half of the clients there are none.
    pub fn new(random: &Random) -> ClientNetwork {
        let is_good = random.once_in(2);
        let one_in = |least: u64| match is_good || random.once_in(3) {
            true => 0,
            false => random.between(least, 10 * least),
        };
        ClientNetwork {
            late_one_in: one_in(3),
            lost_one_in: one_in(6),
            twice_one_in: one_in(3),
            unanswered_one_in: one_in(6),
            late_max_ms: [5, 200, 3_000][random.below(3) as usize],
            random: random.clone(),
        }
    }

    /// Sends a read, on which the network does nothing. The answer comes through the receiver, which
    /// fails at once if the node is gone.
    pub fn send_read(
        &self,
        to: &Reached,
        request: ClientRequest,
    ) -> oneshot::Receiver<ClientResponse> {
        let (answer, receiver) = oneshot::channel();
        arrive(to.clone(), request, Duration::ZERO, answer, false);
        receiver
    }

    /// Sends a write, in the same way. Also returns whether the request arrives a second time,
    /// independently of the first.
    pub fn send(
        &self,
        to: &Reached,
        request: ClientRequest,
    ) -> (oneshot::Receiver<ClientResponse>, bool) {
        let (answer, receiver) = oneshot::channel();
        let happens = |one_in: u64| one_in > 0 && self.random.once_in(one_in);
        let late = || Duration::from_micros(self.random.below(self.late_max_ms * 1_000));
        let comes_twice = happens(self.twice_one_in);
        if comes_twice {
            let (nobody, _) = oneshot::channel();
            arrive(to.clone(), request.clone(), late(), nobody, false);
        }
        if happens(self.lost_one_in) {
            lose(answer);
        } else {
            let after = match happens(self.late_one_in) {
                true => late(),
                false => Duration::ZERO,
            };
            let is_lost = happens(self.unanswered_one_in);
            arrive(to.clone(), request, after, answer, is_lost);
        }
        (receiver, comes_twice)
    }
}

/// Makes a request arrive after some time.
fn arrive(
    to: Reached,
    request: ClientRequest,
    after: Duration,
    answer: oneshot::Sender<ClientResponse>,
    is_lost: bool,
) {
    let take = move |to: &Reached| to.ask(|gateway| take(gateway, request, answer, is_lost));
    if after.is_zero() {
        return take(&to);
    }
    executor::current().spawn_on(OUTSIDE, async move {
        SimRuntime::sleep(after).await;
        // A paused node receives the request when it runs again.
        while executor::current().waits_for(to.host, None) {
            SimRuntime::sleep(Duration::from_millis(1)).await;
        }
        // The connection ends with its node, and the request with it.
        if !executor::current().has_ended(to.host) {
            take(&to);
        }
    });
}

/// Gives a request to a gateway.
fn take(
    gateway: &Gateway<SimEnv>,
    request: ClientRequest,
    answer: oneshot::Sender<ClientResponse>,
    is_lost: bool,
) {
    let now = SimEnv::now();
    let call = Call {
        caller: request.caller,
        deadline: request.timeout.map(|timeout| now + timeout),
        token: request.token,
        target: request.target,
    };
    let is_write = matches!(request.body, Body::Write { .. });
    let once = Rc::new(Once {
        gateway: gateway.clone(),
        answer: RefCell::new(Some(answer)),
        is_lost,
        is_held: Cell::new(false),
        has_waited: Cell::new(false),
        due: invariants::deadlines::due(call.deadline.filter(|_| is_write)),
    });
    invariants::asked(gateway.shard().location(), &request);
    let taken = gateway.admit(&call, now);
    let taken = taken.and_then(|()| match request.body {
        Body::Get { key } => gateway.get(&once, &call, (), &key),
        Body::Write { batch, session } => gateway.write(&once, &call, (), (batch, session)),
        Body::Scan(scan) => gateway.scan(&once, &call, (), scan),
        Body::MultiGet { keys } => {
            let keys: Vec<&[u8]> = keys.iter().map(|key| &**key).collect();
            gateway.multi_get(&once, &call, (), &keys)
        }
    });
    if let Err(error) = taken {
        once.answer(&(), None, Err(error));
    }
}
