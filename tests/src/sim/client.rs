//! A client: the [core](rangedb_client::core) of the real one, whose actions the simulation carries
//! out. What it decides, such as where a call goes and when it is tried again under which request
//! id, is what the users' client decides.
//!
//! The seed decides whether it follows routes. One that does asks the shard that has the key's range.
//! One that does not asks any shard of the node, and its requests are forwarded. Its writes travel
//! over a [`client_network`](super::client_network). Many writes of one client may be under way at
//! once.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rangedb_client::core::multi_get::{self, KeyOutcome, Source};
use rangedb_client::core::{Action, Attempt, Call, ClientCore, Endpoint, Event, Kind, Lost};
use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::error::Error;
use rangedb_engine::gateway::message::{Body, Found};
use rangedb_engine::gateway::request::Caller;
use rangedb_engine::gateway::values;
use rangedb_engine::range::Route;
use rangedb_engine::request::{Batch, Outcome, RequestId, ScanReply, ScanRequest, Target};
use rangedb_engine::types::{Blob, ClientId, Epoch, RangeId, Timestamp};
use rangedb_protocol::{ErrorReply, Fate, Values};
use rangedb_server::net::refusal::Refusal;
use rangedb_server::net::reply::key_result;
use tokio::sync::oneshot;

use super::client_network::{ClientNetwork, ClientRequest, ClientResponse, Reached, TRY_TIMEOUT};
use super::cluster::Cluster;
use super::executor::{self, OnHost};
use super::random::Random;
use super::runtime::SimRuntime;
use super::seen::Seen;

/// A client gives up a write without a deadline after this time.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(8);
/// Of how many requests that name a range one names a version before the range's own.
const STALE_ONCE_IN: u64 = 20;
/// The pause of tasks that try something again.
pub const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// The effort that a client makes for a write.
#[derive(Clone, Copy)]
pub struct Effort {
    /// The deadline, which the request carries. After it the client gives up.
    pub deadline: Option<Duration>,
}

/// A simulated client.
pub struct SimClient {
    /// The client's number.
    pub number: u32,
    cluster: Rc<Cluster>,
    pub(super) seen: Rc<Seen>,
    pub(super) random: Random,
    pub(super) stop: Rc<Cell<bool>>,
    caller: Caller,
    /// How many registers of each kind it uses.
    pub(super) registers: u64,
    /// How many things it does at a time, apart from bursts of writes.
    pub(super) hands: u64,
    /// How many values it has made.
    pub(super) values: Cell<u64>,
    /// Whether a write of its pair is under way.
    pub(super) writes_pair: Cell<bool>,
    client_network: ClientNetwork,
    core: ClientCore,
    /// The instant that the core gets for the beginning of the simulated time.
    origin: Instant,
}

/// What a call asks for, and how.
struct Request<'a> {
    key: &'a [u8],
    body: &'a dyn Fn(RequestId) -> Body,
    kind: Kind,
    /// How long the client waits.
    time: Duration,
    /// Whether the request carries that time as its deadline.
    has_deadline: bool,
}

/// A row that a multi-get has read.
pub struct ReadRow {
    /// The user's key.
    pub key: String,
    /// Its value and version, if it has one.
    pub found: Option<(Blob, Timestamp)>,
}

/// The present try of a call.
#[derive(Default)]
struct Try {
    reached: Option<Reached>,
    receiver: Option<oneshot::Receiver<ClientResponse>>,
    /// Until when an answer counts, and how long a silence is before the core hears of it.
    timeout: Option<(Instant, Option<Duration>)>,
    /// Whether a request of this call may arrive a second time, later than its answer.
    comes_twice: bool,
}

impl Try {
    /// The node that is asked.
    fn node(&self) -> u64 {
        let location = |reached: &Reached| reached.gateway.shard().location();
        self.reached
            .as_ref()
            .map_or(0, |reached| location(reached).node.0)
    }

    /// Waits for the answer; returns it, or the event that comes before.
    async fn answer(&mut self, now: Instant) -> Result<ClientResponse, Event> {
        let (Some(receiver), Some((until, silence))) = (&mut self.receiver, self.timeout) else {
            return Err(Event::Lost(Lost::NotSent("nothing was sent".into())));
        };
        let left = until.saturating_duration_since(now);
        let silence = silence.filter(|silence| *silence < left);
        let answer = SimRuntime::timeout(silence.unwrap_or(left), receiver).await;
        match (answer, silence) {
            (Ok(Ok(told)), _) => Ok(told),
            (Ok(Err(_)), _) => Err(Event::Lost(Lost::Broken("the node is gone".into()))),
            (Err(_), Some(_)) => Err(Event::Silence),
            (Err(_), None) => Err(Event::Lost(Lost::Late)),
        }
    }
}

fn address(machine: u16) -> Arc<str> {
    format!("machine-{machine}").into()
}

impl SimClient {
    /// Makes a client of a cluster.
    pub fn new(
        number: u32,
        cluster: Rc<Cluster>,
        seen: Rc<Seen>,
        seed: u64,
        stop: Rc<Cell<bool>>,
    ) -> Rc<SimClient> {
        let random = Random::new(seed, 1000 + u64::from(number));
        let addresses = (1..=cluster.machines()).map(address).collect();
        let id = u128::from(random.next()) << 64 | u128::from(number);
        // Only the time since then counts, and that is simulated.
        let origin = Instant::now();
        let core = ClientCore::new(addresses, id, origin + executor::current().now());
        Rc::new(SimClient {
            number,
            cluster,
            seen,
            caller: Caller {
                follows_routes: random.once_in(2),
            },
            registers: random.between(1, 6),
            hands: [1, 1, 1, 2, 3][random.below(5) as usize],
            values: Cell::new(0),
            writes_pair: Cell::new(false),
            client_network: ClientNetwork::new(&random),
            core,
            origin,
            random,
            stop,
        })
    }

    /// The size of a log segment, in bytes; an entry must fit into one.
    pub(super) fn segment_bytes(&self) -> usize {
        self.cluster.sizes.segment_bytes
    }

    fn now(&self) -> Instant {
        self.origin + executor::current().now()
    }

    /// The time of the cluster, as a node knows it that is chosen at random.
    pub(super) async fn cluster_time(&self) -> Option<Timestamp> {
        let any = 1 + self.random.below(self.cluster.machines().into()) as u16;
        let reached = self.reach(&address(any), None, TRY_TIMEOUT).await?;
        Some(reached.ask(|gateway| gateway.shard().now()))
    }

    /// A gateway of the node at an address, if that node runs: of the shard, if one is named and the
    /// client follows routes, or of any.
    async fn reach(&self, at: &str, shard: Option<u16>, timeout: Duration) -> Option<Reached> {
        let machine = at.strip_prefix("machine-")?.parse().ok()?;
        let node = self.cluster.on(machine)?;
        let (host, gateways) = (node.host(), node.gateways()?);
        let runs = OnHost::new(host, std::future::ready(()));
        SimRuntime::timeout(timeout, runs).await.ok()?;
        let named = shard.filter(|_| self.caller.follows_routes);
        let any = || self.random.below(gateways.len() as u64) as usize;
        let gateway = gateways.get(named.map_or_else(any, usize::from))?.clone();
        Some(Reached { host, gateway })
    }

    /// Opens a connection, in the words of the core.
    async fn open(&self, endpoint: &Endpoint, until: Instant) -> Option<Reached> {
        let left = until.saturating_duration_since(self.now());
        let reached = self.reach(&endpoint.address, endpoint.shard, left).await;
        match &reached {
            Some(_) => self.core.reached(&endpoint.address),
            None => self.core.leave_out(&endpoint.address, self.now()),
        }
        reached
    }

    /// Asks one node after the other for its directory, until one answers.
    async fn refresh(&self, deadline: Instant) -> bool {
        let (addresses, timeout) = self.core.order(deadline, self.now());
        for at in addresses {
            let Some(reached) = self.reach(&at, None, timeout).await else {
                self.core.leave_out(&at, self.now());
                continue;
            };
            let (directory, now) = reached.ask(|g| (g.directory(), g.shard().now()));
            let routes = directory.routes().iter().map(|route| self.shown(route));
            let from = (reached.gateway.shard().location().node.0, &at);
            let routes = routes.collect();
            self.core.take_directory(routes, now.0, from, self.now());
            return true;
        }
        false
    }

    /// A route as the wire protocol has it.
    fn shown(&self, route: &Route) -> rangedb_protocol::Route {
        let leader = route.leader;
        let node = leader.and_then(|leader| self.cluster.node(leader.node.0));
        let at = node.map(|node| address(node.machine).to_string());
        rangedb_protocol::Route {
            range: route.range.0,
            version: route.epoch.version,
            conf: route.epoch.conf,
            start: route.keys.start.clone(),
            end: route.keys.end.clone(),
            leader: leader.map(|leader| (leader.node.0, leader.shard.0)),
            address: at.unwrap_or_default(),
        }
    }

    /// An error as the wire protocol has it.
    fn shown_error(&self, error: Error) -> ErrorReply {
        let refusal = Refusal::from(error);
        ErrorReply {
            code: Ok(refusal.code),
            fate: refusal.fate,
            retry_after_ms: refusal.retry_after_ms,
            message: refusal.message,
            routes: refusal
                .routes
                .iter()
                .map(|route| self.shown(route))
                .collect(),
        }
    }

    /// The results of a multi-get as the wire protocol has them.
    fn shown_values<'a>(&self, values: &'a values::Values) -> Values<'a> {
        let errors = values.errors().iter().cloned();
        Values {
            results: values.results().iter().map(key_result).collect(),
            values: values.bytes(),
            errors: errors.map(|error| self.shown_error(error)).collect(),
        }
    }

    /// An answer as the core takes it: one that has errors for all keys is a refusal.
    fn judged(&self, result: Result<Found, Error>) -> Result<Found, Box<ErrorReply>> {
        let found = result.map_err(|error| Box::new(self.shown_error(error)))?;
        let refusal = match &found {
            Found::Values(values) => multi_get::refusal(self.shown_values(values).keys()),
            _ => None,
        };
        refusal.map_or(Ok(found), |error| Err(Box::new(error)))
    }

    /// Makes a call: does what the core says, until there is a result or the core gives up. Gives the
    /// result, and where it came from. The error is whether a write may have been applied.
    async fn call(&self, request: Request<'_>) -> Result<(Found, Source), bool> {
        let deadline = self.now() + request.time;
        let mut call = self.core.begin(Some(request.key), request.kind, deadline);
        let mut present = Try::default();
        let mut event = Event::Resume;
        loop {
            let answer = match call.on(event, self.now()) {
                Action::Fail(error) => {
                    return Err(error.fate != Fate::NotApplied || present.comes_twice);
                }
                Action::Pause(pause) => {
                    SimRuntime::sleep(pause).await;
                    deliberate_bug(&mut call);
                    event = Event::Resume;
                    continue;
                }
                Action::Refresh => {
                    let told = self.refresh(deadline).await;
                    let told = told.then_some(()).ok_or("no node answers");
                    event = Event::Refreshed(told.map_err(Into::into));
                    continue;
                }
                Action::Open { endpoint, until } => {
                    present.reached = self.open(&endpoint, until).await;
                    event = match present.reached {
                        Some(_) => Event::Opened,
                        None => Event::NotOpened("the node does not run".into()),
                    };
                    continue;
                }
                Action::Send(attempt) => {
                    self.send(&request, &mut present, attempt);
                    present.answer(self.now()).await
                }
                Action::Wait => present.answer(self.now()).await,
                Action::LookElsewhere => {
                    self.refresh(deadline).await;
                    event = Event::Looked;
                    continue;
                }
            };
            event = match answer {
                Err(event) => event,
                Ok(told) => {
                    let confirmed = self.seen.confirmed.get() + u64::from(told.was_confirmed);
                    self.seen.confirmed.set(confirmed);
                    let node = present.node();
                    match self.judged(told.reply.result) {
                        Ok(found) => {
                            let endpoint = call.answered(told.reply.now.0, self.now());
                            return Ok((found, Source { node, endpoint }));
                        }
                        Err(error) => Event::Refused {
                            node,
                            timestamp: told.reply.now.0,
                            error,
                        },
                    }
                }
            };
        }
    }

    /// Sends the request of a try.
    fn send(&self, request: &Request<'_>, present: &mut Try, attempt: Attempt) {
        let Some(reached) = &present.reached else {
            return;
        };
        let request_id = RequestId {
            client: ClientId(attempt.request_id.client),
            sequence: attempt.request_id.sequence,
            lowest_unanswered: attempt.request_id.lowest_unanswered,
            first_tried: Timestamp(attempt.request_id.first_tried),
        };
        // About every other request names no range, as other clients do.
        let target = attempt.target.filter(|_| self.random.once_in(2));
        // And some believe in bounds that the range no longer has.
        let behind = u32::from(target.is_some() && self.random.once_in(STALE_ONCE_IN));
        let asked = ClientRequest {
            body: (request.body)(request_id),
            caller: self.caller,
            token: Timestamp(attempt.token),
            target: target.map(|target| Target {
                range: RangeId(target.range),
                epoch: Epoch {
                    version: target.version.saturating_sub(behind),
                    conf: target.conf,
                },
            }),
            timeout: (request.has_deadline)
                .then(|| Duration::from_millis(attempt.deadline_ms.into())),
        };
        let receiver = match request.kind {
            Kind::Write => {
                let (receiver, comes_twice) = self.client_network.send(reached, asked);
                present.comes_twice |= comes_twice;
                receiver
            }
            Kind::Read | Kind::Order => self.client_network.send_read(reached, asked),
        };
        present.receiver = Some(receiver);
        present.timeout = Some((attempt.until, attempt.silence));
    }

    /// Writes until the outcome is known or the client gives up. `Err(true)` if the write may have
    /// been applied; `Err(false)` if it is not applied and never will be.
    pub(super) async fn write(
        &self,
        key: &[u8],
        write: Batch,
        effort: Effort,
    ) -> Result<Outcome, bool> {
        let body = |session| Body::Write {
            batch: write.clone(),
            session,
        };
        let called = self.call(Request {
            key,
            body: &body,
            kind: Kind::Write,
            time: effort.deadline.unwrap_or(WRITE_TIMEOUT),
            has_deadline: effort.deadline.is_some(),
        });
        let result = match called.await {
            Ok((Found::Written(outcome), _)) => Ok(outcome),
            Ok(_) => Err(true),
            Err(in_doubt) => Err(in_doubt),
        };
        let count = if result.is_ok() {
            &self.seen.done
        } else {
            &self.seen.failed
        };
        count.set(count.get() + 1);
        result
    }

    /// Sends a write to some node, once, under a request id of the caller's choice; `None` if it has no outcome.
    pub(super) async fn write_as(&self, batch: Batch, session: RequestId) -> Option<Outcome> {
        let any = 1 + self.random.below(self.cluster.machines().into()) as u16;
        let reached = self.reach(&address(any), None, TRY_TIMEOUT).await?;
        let asked = ClientRequest {
            body: Body::Write { batch, session },
            caller: Caller {
                follows_routes: false,
            },
            token: Timestamp::ZERO,
            target: None,
            timeout: None,
        };
        let receiver = self.client_network.send_read(&reached, asked);
        let told = SimRuntime::timeout(TRY_TIMEOUT, receiver)
            .await
            .ok()?
            .ok()?;
        match told.reply.result {
            Ok(Found::Written(outcome)) => Some(outcome),
            _ => None,
        }
    }

    /// Reads something within the time of one try.
    async fn ask(&self, key: &[u8], body: Body) -> Option<(Found, Source)> {
        let body = |_| body.clone();
        let called = self.call(Request {
            key,
            body: &body,
            kind: Kind::Read,
            time: TRY_TIMEOUT,
            has_deadline: false,
        });
        called.await.ok()
    }

    /// Reads a key from the leader: by its lease, or after a majority has confirmed that it leads.
    /// `None`: no node answers.
    pub(super) async fn read<R>(
        &self,
        key: &[u8],
        look: impl Fn(Option<(&[u8], Timestamp)>) -> R,
    ) -> Option<R> {
        let key = Blob::copy_from_slice(key);
        match self.ask(&key.clone(), Body::Get { key }).await? {
            (Found::Value(found), _) => {
                let found = found.as_ref();
                Some(look(found.map(|found| (&*found.value, found.version))))
            }
            _ => None,
        }
    }

    /// Reads several keys, part by part, as the core splits them. `take` gets what each reply has read.
    /// Keys that no node reads in the time of their part are missing.
    pub(super) async fn multi_get(&self, keys: &[Blob], take: impl Fn(Vec<ReadRow>)) {
        let slices: Vec<&[u8]> = keys.iter().map(|key| &**key).collect();
        let mut parts = self.core.parts(&slices, 0..keys.len());
        while let Some(part) = parts.pop() {
            let of_part = part.keys.iter().filter_map(|at| keys.get(*at));
            let of_part: Vec<Blob> = of_part.cloned().collect();
            let Some(first) = of_part.first().cloned() else {
                continue;
            };
            let body = Body::MultiGet { keys: of_part };
            let Some((Found::Values(values), source)) = self.ask(&first, body).await else {
                continue;
            };
            let shown = self.shown_values(&values);
            let (mut read, mut again) = (Vec::new(), Vec::new());
            for (at, result) in part.keys.iter().zip(shown.keys()) {
                let key = &keys[*at];
                match self.core.take_key(key, result, &source) {
                    KeyOutcome::Read(found) => read.push(ReadRow {
                        key: String::from_utf8_lossy(key).into_owned(),
                        found: found.map(|(value, version)| {
                            (Blob::copy_from_slice(value), Timestamp(version))
                        }),
                    }),
                    KeyOutcome::Again => again.push(*at),
                    KeyOutcome::Failed(_) => {}
                }
            }
            take(read);
            parts.extend(self.core.parts(&slices, again));
        }
    }

    /// Reads a key, on any node, until one answers; `None` after many tries.
    pub async fn read_with_retries(&self, key: &str) -> Option<Option<String>> {
        for _ in 0..200 {
            let read = self.read(key.as_bytes(), |found| {
                found.map(|(value, _)| String::from_utf8_lossy(value).into_owned())
            });
            if let Some(found) = read.await {
                return Some(found);
            }
            SimRuntime::sleep(RETRY_INTERVAL).await;
        }
        None
    }

    /// Reads one page of a scan.
    pub(super) async fn scan(&self, scan: ScanRequest) -> Option<ScanReply> {
        match self.ask(&scan.first_key(), Body::Scan(scan)).await? {
            (Found::Rows(reply), _) => Some(reply),
            _ => None,
        }
    }
}

/// Makes the next try a write of its own, if the run has this deliberate bug.
fn deliberate_bug(call: &mut Call<'_>) {
    #[cfg(feature = "mutants")]
    if rangedb_engine::mutant::is(rangedb_engine::mutant::Mutant::RetryUnderNewId) {
        call.forget_request_id();
    }
    #[cfg(not(feature = "mutants"))]
    let _ = call;
}
