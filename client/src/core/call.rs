//! The state machine of one call: its tries, one after the other, until one has a result that counts
//! or the call gives up.
//!
//! ```text
//!  Resume --> [route known?] --no--> Refresh --> Refreshed
//!                  | yes                            |
//!                  v                                v
//!                Open ------> NotOpened ----> [another try?] --no--> Fail
//!                  | Opened                      ^      | yes
//!                  v                             |      v
//!                Send --> Refused, Lost ---------+    Pause --> Resume
//!                  |  Silence: LookElsewhere --> Looked: Wait, or the try is given up
//!                  v
//!              answered
//! ```
//!
//! The first retry after a stale route is made at once and takes nothing from the budget of retries. Later
//! ones pause, and take from it. After a split, the refusal has the routes of all parts: the next try goes
//! to the right one at once, and takes nothing either. A range that has no leader yet, after a split or
//! when its leader has died, is asked again a few milliseconds later. A write whose fate is unknown is
//! tried again under the same request id until the fate is known. The rules for each error are in
//! [`Call::refused`] and [`Call::lost`].

use std::time::{Duration, Instant};

use rangedb_protocol::{ErrorReply, Route, Session as RequestId, Target};

use super::ClientCore;
use super::directory::{Destination, Endpoint, names_no_leader};
use super::session::Write;
use crate::error::{Error, ErrorCode, Fate, Reason};

/// A node that has not answered a try for this long may be gone: the call is tried elsewhere.
const TRY_TIMEOUT: Duration = Duration::from_millis(1500);
/// If a node has not answered a try for this long (or a quarter of the remaining time), the range
/// may have another leader: other nodes are asked for it while the try goes on.
const LOOK_ELSEWHERE_TIMEOUT: Duration = Duration::from_millis(500);
/// If that is shorter than this, no other node could answer in time, and none is asked: otherwise a call at
/// its deadline would ask as fast as it can.
const LOOK_ELSEWHERE_MIN: Duration = Duration::from_millis(1);
/// Longest wait, in milliseconds, for a timestamp that a node finds too far ahead. A longer wait
/// means that a clock is wrong, and the client drops the timestamp.
const WAIT_FOR_CLOCK_MS: u32 = 100;
/// The pauses before the shard of a range that has no leader yet is asked again. After them the call
/// asks other nodes, too.
const UNLED_PAUSES: [Duration; 3] = [
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(20),
];
/// How often a call whose timestamp is refused is tried again.
const CLOCK_TRIES: u32 = 4;

/// What kind of call it is, which decides how it may be retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It changes nothing.
    Read,
    /// It changes keys. Its request id tells the cluster a retry from a new write.
    Write,
    /// It changes the cluster and has no request id: it is not tried again if it may have been received.
    Order,
}

/// Why a request has no reply.
#[derive(Clone, Debug)]
pub enum Lost {
    /// The time for the try has passed.
    Late,
    /// The connection broke when the request may have been sent.
    Broken(Reason),
    /// The request was not sent.
    NotSent(Reason),
}

impl From<Lost> for Reason {
    fn from(lost: Lost) -> Reason {
        match lost {
            Lost::Late => Reason::timed_out("no reply came within the time given"),
            Lost::Broken(reason) => {
                let text = format!("the connection broke: {reason}");
                reason.worded(text)
            }
            Lost::NotSent(reason) => reason,
        }
    }
}

/// What the driver tells a call.
#[derive(Debug)]
pub enum Event {
    /// The call begins, or a pause is over.
    Resume,
    /// A node has sent the directory, or none did in time. After [`Action::Refresh`].
    Refreshed(Result<(), Reason>),
    /// There is a connection. After [`Action::Open`].
    Opened,
    /// There is none. After [`Action::Open`].
    NotOpened(Reason),
    /// The time of [`Attempt::silence`] has passed without a reply.
    Silence,
    /// Other nodes were asked for the directory; whether one answered does not matter. After
    /// [`Action::LookElsewhere`].
    Looked,
    /// Node `node` has refused the request, at its time `timestamp`.
    Refused {
        /// The id of the node that has refused.
        node: u64,
        /// Its time, from the reply.
        timestamp: u64,
        /// The error in its reply.
        error: Box<ErrorReply>,
    },
    /// The reply makes no sense.
    Unreadable(String),
    /// There is no reply.
    Lost(Lost),
}

/// What the driver does next.
#[derive(Debug)]
pub enum Action {
    /// Asks a node for the directory, within the call's deadline; see [`ClientCore::order`].
    Refresh,
    /// Opens a connection, or takes the one that is open.
    Open {
        /// The node, and the shard if it is known.
        endpoint: Endpoint,
        /// When to give up.
        until: Instant,
    },
    /// Sends the request over that connection, then waits for the reply.
    Send(Attempt),
    /// Goes on waiting for the reply.
    Wait,
    /// Asks a node for the directory and goes on waiting for the reply, whichever comes first.
    LookElsewhere,
    /// Waits for this long, if at all, before [`Event::Resume`].
    Pause(Duration),
    /// The call has failed.
    Fail(Error),
}

/// One sending of a call's request: what differs from try to try.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The range that the client believes to own the key.
    pub target: Option<Target>,
    /// The write's request id; meaningless in other calls.
    pub request_id: RequestId,
    /// The newest timestamp that the client has seen.
    pub token: u64,
    /// The time limit that the request carries.
    pub deadline_ms: u32,
    /// When the try is [late](Lost::Late).
    pub until: Instant,
    /// The interval without a reply after which there is an [`Event::Silence`], again and again; `None`:
    /// there is none.
    pub silence: Option<Duration>,
}

/// A call. Dropping it gives it up: its write may still be applied.
#[derive(Debug)]
pub struct Call<'a> {
    core: &'a ClientCore,
    key: Option<&'a [u8]>,
    kind: Kind,
    deadline: Instant,
    /// The write with its request id, from its first try on.
    write: Option<Write<'a>>,
    /// Where the present try goes; `None`: no endpoint was found.
    tried: Option<Destination>,
    tries: u32,
    /// How many tries have met a range without a leader.
    unled: usize,
    /// Whether a retry of the kind [`Next::Heal`] was made at once: only the first one is.
    has_healed: bool,
    /// Whether a try may have reached a server and got no answer.
    in_doubt: bool,
    /// The last error from a node. Once it is `NoQuorum`, only another `NoQuorum` replaces it.
    said: Option<Error>,
}

/// What to do after a failed try.
enum Next {
    /// The route was stale, and the refusal names a newer range that has the key: try again there, at
    /// once.
    Follow(Error),
    /// The route may be stale, or the failure may pass: try again, the first time at once, later after a
    /// pause.
    Heal(Error),
    /// The range has no leader yet: ask again a little later.
    AwaitLeader(Error),
    /// Try again after a pause, at least as long as the error asks.
    Later(Error),
    /// Give up.
    GiveUp(Error),
}

impl ClientCore {
    /// Begins a call for a key, or for any node. It gives up at the deadline.
    pub fn begin<'a>(&'a self, key: Option<&'a [u8]>, kind: Kind, deadline: Instant) -> Call<'a> {
        self.budget.earn();
        Call {
            core: self,
            key,
            kind,
            deadline,
            write: None,
            tried: None,
            tries: 0,
            unled: 0,
            has_healed: false,
            in_doubt: false,
            said: None,
        }
    }
}

impl<'a> Call<'a> {
    /// Takes an event; says what to do next.
    pub fn on(&mut self, event: Event, now: Instant) -> Action {
        match event {
            Event::Resume => self.find_route(now),
            Event::Refreshed(Ok(())) => {
                let found = self.key.and_then(|key| self.core.directory.find(key));
                self.open(found, now)
            }
            Event::Refreshed(Err(reason)) => self.lost(Lost::NotSent(reason), now),
            Event::Opened => self.send(now),
            Event::NotOpened(reason) => self.lost(Lost::NotSent(reason), now),
            Event::Silence => {
                if let Some(tried) = &self.tried {
                    self.core.leave_out(&tried.endpoint.address, now);
                }
                Action::LookElsewhere
            }
            Event::Looked => self.compare_routes(now),
            Event::Refused {
                node,
                timestamp,
                error,
            } => self.refused(node, timestamp, *error, now),
            Event::Unreadable(message) => {
                let error = Error::new(ErrorCode::Internal, Fate::Unknown, message);
                self.after(Next::GiveUp(error), now)
            }
            Event::Lost(lost) => self.lost(lost, now),
        }
    }

    /// The reply was a result, from a node whose time was `timestamp`: the call has ended. Returns
    /// the endpoint that has answered.
    pub fn answered(self, timestamp: u64, now: Instant) -> Option<Endpoint> {
        self.core.session.observe(timestamp, now);
        if let Some(write) = self.write {
            write.answered();
        }
        self.tried.map(|tried| tried.endpoint)
    }

    /// A deliberate bug, by which the tests of retries prove themselves: the next try is made under a
    /// request id of its own.
    #[cfg(any(test, feature = "mutants"))]
    pub fn forget_request_id(&mut self) {
        if let Some(write) = self.write.take() {
            write.answered();
        }
    }

    fn find_route(&mut self, now: Instant) -> Action {
        self.tried = None;
        let found = self.key.and_then(|key| self.core.directory.find(key));
        // Before the first directory, the client does not know the cluster's time either.
        let is_missing = self.key.is_some() && found.is_none();
        if is_missing || self.core.directories() == 0 {
            return Action::Refresh;
        }
        self.open(found, now)
    }

    /// Goes to the endpoint of a route, or to any node, which knows a route.
    fn open(&mut self, found: Option<Destination>, now: Instant) -> Action {
        let tried = found.unwrap_or_else(|| Destination {
            target: None,
            endpoint: self.core.any_endpoint(now),
        });
        let endpoint = tried.endpoint.clone();
        self.tried = Some(tried);
        let left = self.deadline.saturating_duration_since(now);
        // One node must leave time for the others.
        let until = match self.has_others() {
            true => now + left / 3,
            false => self.deadline,
        };
        Action::Open { endpoint, until }
    }

    /// Whether the client was given an address besides that of the present try.
    fn has_others(&self) -> bool {
        let tried = self.tried.as_ref().map(|tried| &tried.endpoint.address);
        (self.core.addresses.iter()).any(|address| Some(address) != tried)
    }

    fn send(&mut self, now: Instant) -> Action {
        let left = self.deadline.saturating_duration_since(now);
        let others = self.has_others();
        // Only a call that can go elsewhere gives up a try early. The node gets the same time
        // limit.
        let until = match self.key {
            Some(_) if others => self.deadline.min(now + TRY_TIMEOUT),
            None if others && self.kind == Kind::Read => now + TRY_TIMEOUT.min(left / 2),
            _ => self.deadline,
        };
        let limit = until.saturating_duration_since(now);
        if limit.is_zero() {
            let reason = Reason::from("the deadline has passed");
            return self.lost(Lost::NotSent(reason), now);
        }
        if self.kind == Kind::Write && self.write.is_none() {
            self.write = Some(self.core.session.begin(self.deadline, now));
        }
        let in_doubt = self.in_doubt;
        let write = self.write.as_mut();
        let request_id = write.map(|write| write.request_id(now, in_doubt));
        let silence = LOOK_ELSEWHERE_TIMEOUT.min(left / 4);
        let can_look = others && self.key.is_some() && silence >= LOOK_ELSEWHERE_MIN;
        Action::Send(Attempt {
            target: self.tried.as_ref().and_then(|tried| tried.target),
            request_id: request_id.unwrap_or_default(),
            token: self.core.session.token(),
            deadline_ms: limit.as_millis().clamp(1, u32::MAX.into()) as u32,
            until,
            silence: can_look.then_some(silence),
        })
    }

    /// After other nodes were asked: if the range has moved, the try is given up.
    fn compare_routes(&mut self, now: Instant) -> Action {
        let found = self.key.and_then(|key| self.core.directory.find(key));
        match (found, &self.tried) {
            (Some(found), Some(tried)) if found.endpoint != tried.endpoint => {
                self.lost(Lost::Late, now)
            }
            _ => Action::Wait,
        }
    }

    fn refused(&mut self, node: u64, timestamp: u64, reply: ErrorReply, now: Instant) -> Action {
        self.core.session.observe(timestamp, now);
        let passes_soon = (1..=WAIT_FOR_CLOCK_MS).contains(&reply.retry_after_ms);
        let routes = reply.routes.clone();
        let error = Error::from(reply);
        let next = match error.code {
            ErrorCode::NotLeader if self.has_no_leader(&routes, node) => {
                self.unled += 1;
                if self.unled > UNLED_PAUSES.len() {
                    self.forget_route();
                }
                Next::AwaitLeader(error)
            }
            ErrorCode::Moved if self.goes_on(&routes, node) => Next::Follow(error),
            ErrorCode::Moved | ErrorCode::NotLeader => {
                self.goes_on(&routes, node);
                Next::Heal(error)
            }
            // Another node may reach a majority.
            ErrorCode::NoQuorum if self.kind != Kind::Order => {
                self.forget_route();
                Next::Later(error)
            }
            // Either the timestamp becomes possible by waiting, or the client drops it.
            ErrorCode::ClockOutOfBounds if passes_soon => Next::Later(error),
            ErrorCode::ClockOutOfBounds => {
                self.core.session.step_back(timestamp, now);
                Next::Heal(error)
            }
            // This was the deadline of the try, not of the call.
            ErrorCode::DeadlineExceeded if now < self.deadline => Next::Heal(error),
            // Its entry may still be applied: the next try finds that out by the request id.
            ErrorCode::Unknown if self.kind == Kind::Write => Next::Heal(error),
            ErrorCode::Overloaded
            | ErrorCode::Busy
            | ErrorCode::Recovering
            | ErrorCode::TooManyInFlight
            | ErrorCode::ShuttingDown
            | ErrorCode::Unreadable => Next::Later(error),
            _ => Next::GiveUp(error),
        };
        if let Next::Heal(error) | Next::Later(error) = &next {
            self.in_doubt |= error.fate == Fate::Unknown;
        }
        self.after(next, now)
    }

    fn lost(&mut self, lost: Lost, now: Instant) -> Action {
        let fate = match lost {
            Lost::Late | Lost::Broken(_) => Fate::Unknown,
            Lost::NotSent(_) => Fate::NotApplied,
        };
        let may_be_received = fate == Fate::Unknown;
        self.in_doubt |= may_be_received;
        let code = match may_be_received {
            true => ErrorCode::DeadlineExceeded,
            false => ErrorCode::Unreachable,
        };
        let error = Error::new(code, fate, lost);
        let is_late = now >= self.deadline;
        if is_late || (self.kind == Kind::Order && may_be_received) {
            return self.after(Next::GiveUp(error), now);
        }
        if let Some(tried) = self.tried.as_ref().filter(|_| may_be_received) {
            self.core.leave_out(&tried.endpoint.address, now);
        }
        // The cached route may be wrong, too.
        self.forget_route();
        self.after(Next::Heal(error), now)
    }

    /// Whether a refusal with these routes, by the node `node`, says that the range has no leader yet.
    fn has_no_leader(&self, routes: &[Route], node: u64) -> bool {
        let tried = self.tried.as_ref();
        tried.is_some_and(|tried| names_no_leader(routes, node, &tried.endpoint))
    }

    /// Learns the routes of a refusal by the node `node`. Gives whether they name a newer range for the
    /// key than the one that was tried.
    fn goes_on(&self, routes: &[Route], node: u64) -> bool {
        let (Some(key), Some(tried)) = (self.key, &self.tried) else {
            return false;
        };
        let from = (node, &tried.endpoint.address);
        self.core.directory.correct(key, tried, routes, from);
        let found = self.core.directory.find(key).and_then(|found| found.target);
        match (found, tried.target) {
            (Some(found), Some(tried)) => found.version > tried.version,
            (found, None) => found.is_some(),
            (None, Some(_)) => false,
        }
    }

    fn forget_route(&self) {
        if let (Some(key), Some(tried)) = (self.key, &self.tried) {
            self.core.directory.forget(key, tried);
        }
    }

    /// Tries again after a failure, if that makes sense in the time that is left.
    fn after(&mut self, next: Next, now: Instant) -> Action {
        let later = |error: &Error| self.core.pause(self.tries, error.retry_after);
        let (error, pause, is_free) = match next {
            Next::GiveUp(error) => return self.fail(error),
            Next::Follow(error) => (error, Duration::ZERO, true),
            Next::Heal(error) if !self.has_healed => {
                self.has_healed = true;
                (error, Duration::ZERO, true)
            }
            Next::AwaitLeader(error) => {
                let pause = UNLED_PAUSES.get(self.unled.saturating_sub(1)).copied();
                let pause = pause.unwrap_or_else(|| later(&error));
                (error, pause, true)
            }
            Next::Heal(error) | Next::Later(error) => {
                let pause = later(&error);
                (error, pause, self.tries == 0)
            }
        };
        let no_quorum = |error: &Error| error.code == ErrorCode::NoQuorum;
        let is_from_a_node = !matches!(
            error.code,
            ErrorCode::Unreachable | ErrorCode::DeadlineExceeded
        );
        if no_quorum(&error) || (is_from_a_node && !self.said.as_ref().is_some_and(no_quorum)) {
            self.said = Some(error.clone());
        }
        // Free are: a call's first retry, whatever failed; the first that is made at once; each that
        // follows the key to a newer range; each that waits for a leader or a majority, as these add to
        // no node's load. A write in doubt is retried until its fate is known.
        self.core.budget.pass(now);
        let affordable = no_quorum(&error)
            || is_free
            || (self.in_doubt && self.kind == Kind::Write)
            || self.core.budget.take();
        // If nodes go on refusing the timestamp, it is in the request itself, not in the session.
        let is_hopeless = error.code == ErrorCode::ClockOutOfBounds && self.tries >= CLOCK_TRIES;
        if !affordable || is_hopeless || now + pause >= self.deadline {
            return self.fail(error);
        }
        self.tries += 1;
        tracing::debug!(tries = self.tries, ?pause, %error, "a call is tried again");
        Action::Pause(pause)
    }

    /// Ends the call with the error that tells most, and with its final fate.
    fn fail(&mut self, error: Error) -> Action {
        let mut error = explained(error, self.said.take());
        match self.write.take() {
            // An earlier try may still be applied, whatever the last one did.
            Some(_) if self.in_doubt && error.fate == Fate::NotApplied => {
                error.fate = Fate::Unknown;
            }
            Some(write) if error.fate == Fate::NotApplied => write.answered(),
            Some(_) => {}
            // An order that may have been received is not tried again, so the fate of the last try is
            // that of the call.
            None if self.kind == Kind::Order => {}
            None => error.fate = Fate::NotApplied,
        }
        Action::Fail(error)
    }
}

/// If an error says only that the last try failed, gives an earlier one that tells more instead.
fn explained(error: Error, said: Option<Error>) -> Error {
    let is_vague = matches!(
        error.code,
        ErrorCode::Unreachable
            | ErrorCode::DeadlineExceeded
            | ErrorCode::NotLeader
            | ErrorCode::Moved
            | ErrorCode::Unknown
    );
    match said {
        Some(mut known)
            if error.code == ErrorCode::Unreachable
                || (is_vague && known.code == ErrorCode::NoQuorum) =>
        {
            known.fate = error.fate;
            known
        }
        _ => error,
    }
}
