//! How a request reaches the leader of its range if the shard that received it cannot answer at once. It is
//! sent to the leader that the directory names; after a refusal, to the leader that the refusal names;
//! while the range has no leader, it waits.
//!
//! A range can be without a leader for a moment: after its leader has died, when its leader has begun to
//! split it, and when it has just been made by a split. A caller that follows routes gets the error and
//! tries again itself. For any other caller the gateway that received the request does so: each try is a
//! forwarded request, which is answered at once, even if it goes to the same shard. Only refusals that
//! leave a request undone lead to another try, so a write is not proposed twice at the same time. The wait
//! ends with the deadline, and at the latest after [`LEADER_WAIT_MAX`].
//!
//! Lives on its shard's thread. A request that can be answered at once never comes here.

use std::rc::Rc;
use std::time::Duration;

use super::admission::Part;
use super::forwarding::{self, Kind, deadline_left};
use super::message::{self, Body, Reply};
use super::request::Call;
use super::responder::Responder;
use super::router::leader_in;
use super::{Gateway, pass_on, refuse};
use crate::boot_time::BootTime;
use crate::env::{AsyncRuntime, Env};
use crate::error::{Error, Fate};
use crate::limits::LEADER_WAIT_MAX;
use crate::request::{Batch, Outcome, RequestId, Target};
use crate::shard::WriteSink;
use crate::types::{Blob, Location};

/// The pauses between two tries: the first, and the longest. The routes of other shards of the node, and
/// the manager's view, arrive without a notice.
const PAUSE_FIRST: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(40);

/// The wait of one request for a leader of its range.
pub(super) struct LeaderWait {
    until: BootTime,
    pause: Duration,
    /// Whether the leader that a refusal names may be asked before another pause.
    may_follow: bool,
    /// Its room; it is taken at the first pause.
    room: Option<Part>,
}

impl LeaderWait {
    /// The wait of a request that has been refused now.
    pub fn new(deadline: Option<BootTime>, now: BootTime) -> LeaderWait {
        let until = now + LEADER_WAIT_MAX;
        LeaderWait {
            until: deadline.map_or(until, |deadline| deadline.min(until)),
            pause: PAUSE_FIRST,
            may_follow: true,
            room: None,
        }
    }

    /// Pauses before the next try of a request for a key: not at all if the last refusal names a leader
    /// and was the first one since the last pause, and otherwise until routes have changed since their
    /// version was `routes`, but not for long. `false`: the time is up.
    ///
    /// # Errors
    /// [`Error::Overloaded`]: too many requests wait. [`Error::ShuttingDown`].
    pub async fn pause<E: Env>(
        &mut self,
        gateway: &Gateway<E>,
        (key, len): (&[u8], usize),
        (names_leader, routes): (bool, usize),
    ) -> Result<bool, Error> {
        if E::now() >= self.until {
            return Ok(false);
        }
        if std::mem::replace(&mut self.may_follow, !names_leader) && names_leader {
            return Ok(true);
        }
        self.may_follow = true;
        let admission = &gateway.inner.admission;
        if self.room.is_none() {
            self.room = Some(admission.begin_leader_wait(gateway.range_of(key), len)?);
        }
        let until = self.until.min(E::now() + self.pause);
        self.pause = PAUSE_MAX.min(self.pause * 2);
        let changed = gateway.inner.shard.leader_changed(key, routes);
        let _ = E::Runtime::timeout_at(until.into(), changed).await;
        match admission.is_shutting_down() {
            true => Err(Error::ShuttingDown),
            false => Ok(E::now() < self.until),
        }
    }
}

/// What a refusal says of where the range is led.
pub(super) enum Refused {
    /// Here, as far as the refusing shard knows.
    LedAt(Location),
    /// Nowhere at the moment.
    Unled,
}

/// What the refusal of a request says of where its range is led. `None`: another try would not help. That
/// the range is not the one which the caller names is its own matter.
pub(super) fn refused(error: &Error, target: Option<Target>) -> Option<Refused> {
    let leader = match error {
        Error::NotLeader(Some(route)) => route.leader,
        Error::Moved(routes) => {
            let route = routes.first();
            let named = |target: Target| (target.range, target.epoch.version);
            if let (Some(target), Some(route)) = (target, route)
                && named(target) != (route.range, route.epoch.version)
            {
                return None;
            }
            route.and_then(|route| route.leader)
        }
        _ => return None,
    };
    Some(leader.map_or(Refused::Unled, Refused::LedAt))
}

/// A write of a caller that follows no routes, while this shard decides it. If the shard refuses it, it
/// is carried to the leader.
struct LocalWrite<E: Env, R: Responder> {
    gateway: Gateway<E>,
    responder: Rc<R>,
    ticket: R::Ticket,
    call: Call,
    write: (Batch, RequestId),
}

impl<E: Env, R: Responder> WriteSink for LocalWrite<E, R> {
    fn complete(&self, token: u64, result: Result<Outcome, Error>) {
        match result {
            Err(error) if refused(&error, self.call.target).is_some() => {
                let (batch, session) = self.write.clone();
                let body = Body::Write { batch, session };
                let held = (self.ticket, token);
                let gateway = &self.gateway;
                gateway.carry_held(&self.responder, &self.call, held, body, Err(error));
            }
            result => self.responder.complete(token, result),
        }
    }
}

impl<E: Env> Gateway<E> {
    /// Whether the gateway carries a request to the leader of its range after this refusal, rather than
    /// tell the caller.
    pub(super) fn carries(&self, call: &Call, error: &Error) -> bool {
        !call.caller.follows_routes && refused(error, call.target).is_some()
    }

    /// What takes the result of a write that this shard decides.
    pub(super) fn write_sink<R: Responder>(
        &self,
        responder: &Rc<R>,
        call: &Call,
        ticket: R::Ticket,
        write: (&Batch, RequestId),
    ) -> Rc<dyn WriteSink> {
        if call.caller.follows_routes {
            return responder.clone();
        }
        Rc::new(LocalWrite {
            gateway: self.clone(),
            responder: responder.clone(),
            ticket,
            call: *call,
            write: (write.0.clone(), write.1),
        })
    }

    /// Carries a request to the leader of its range, and passes the answer on. `first` is where the range
    /// is led, or why that is not known.
    pub(super) fn carry<R: Responder>(
        &self,
        responder: &Rc<R>,
        call: &Call,
        ticket: R::Ticket,
        body: Body,
        first: Result<Location, Error>,
    ) -> Result<(), R::Refusal> {
        let token = responder.hold(ticket)?;
        self.carry_held(responder, call, (ticket, token), body, first);
        Ok(())
    }

    /// Carries a request that the responder holds already.
    pub(super) fn carry_held<R: Responder>(
        &self,
        responder: &Rc<R>,
        call: &Call,
        (ticket, token): (R::Ticket, u64),
        body: Body,
        first: Result<Location, Error>,
    ) {
        responder.departed(&ticket);
        let (gateway, responder, call) = (self.clone(), responder.clone(), *call);
        drop(E::Runtime::spawn(async move {
            let reply = gateway.answer_of_leader(&call, body, first).await;
            responder.returned(&ticket);
            match reply {
                Ok(reply) => pass_on(responder.as_ref(), token, reply),
                Err(error) => refuse(responder.as_ref(), token, error),
            }
        }));
    }

    /// The answer of the leader of a request's range.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn answer_of_leader(
        &self,
        call: &Call,
        body: Body,
        first: Result<Location, Error>,
    ) -> Result<Reply, Error> {
        let (key, len) = (body.first_key(), body.len_in_bytes());
        let mut request = message::Request {
            left_us: None,
            token: call.token,
            target: call.target,
            body,
        };
        let mut wait = None;
        let mut next = first;
        loop {
            let routes = self.inner.shard.routes_version();
            let (asked, reply) = match next {
                Ok(to) => (to, self.ask(to, &key, &mut request, call.deadline).await),
                Err(error) => (self.inner.here, Err(error)),
            };
            let (Err(error)
            | Ok(Reply {
                result: Err(error), ..
            })) = &reply
            else {
                return reply;
            };
            let leader = match refused(error, call.target) {
                // One that does not lead yet names itself.
                Some(Refused::LedAt(leader)) => Some(leader).filter(|leader| *leader != asked),
                Some(Refused::Unled) => None,
                None => return reply,
            };
            let news = (leader.is_some(), routes);
            let wait = wait.get_or_insert_with(|| LeaderWait::new(call.deadline, E::now()));
            if !wait.pause(self, (&key, len), news).await? {
                return Err(self.why_unled(call, &key, error));
            }
            next = leader.map_or_else(|| self.leader_of(&key), Ok);
        }
    }

    /// Sends a request for a key to a shard, which may be this one, and waits for its answer.
    async fn ask(
        &self,
        to: Location,
        key: &[u8],
        request: &mut message::Request,
        deadline: Option<BootTime>,
    ) -> Result<Reply, Error> {
        let kind = Kind::of(&request.body);
        request.left_us = deadline.map(deadline_left::<E>);
        if to == self.inner.here {
            let answer = self.receive(&message::encode_request(request)).await;
            return forwarding::reply(kind, Ok(answer));
        }
        let shard = &self.inner.shard;
        let room_of = (to, self.range_of(key));
        let admitted = self.inner.forwarding.admit(shard, room_of, request)?;
        forwarding::reply(kind, admitted.send(shard, deadline).await)
    }

    /// The shard to ask for a key: this one if it has a replica of the range, which knows best, or the
    /// one that leads the range by the directory.
    fn leader_of(&self, key: &[u8]) -> Result<Location, Error> {
        match self.inner.shard.holds(key) {
            true => Ok(self.inner.here),
            false => leader_in(self.look_up(key), self.inner.here),
        }
    }

    /// The error of a request that has waited in vain, by the last one: if that is that the range has no
    /// leader, it may be because there is no majority, or because the deadline has passed.
    pub(super) fn why_unled(&self, call: &Call, key: &[u8], last: &Error) -> Error {
        let is_late = call.deadline.is_some_and(|deadline| deadline <= E::now());
        match refused(last, call.target) {
            Some(_) if self.inner.shard.lacks_quorum(key) => Error::NoQuorum(Fate::NotApplied),
            Some(_) if is_late => Error::DeadlineExceeded,
            _ => last.clone(),
        }
    }
}

impl Body {
    /// The key that decides which range gets the request.
    pub(super) fn first_key(&self) -> Blob {
        match self {
            Body::Get { key } => key.clone(),
            Body::Write { batch, .. } => batch.first_key().cloned().unwrap_or_default(),
            Body::Scan(scan) => scan.first_key(),
            Body::MultiGet { keys } => keys.first().cloned().unwrap_or_default(),
        }
    }

    /// Bytes of its keys and values.
    fn len_in_bytes(&self) -> usize {
        match self {
            Body::Get { key } => key.len(),
            Body::Write { batch, .. } => batch.len_in_bytes(),
            Body::Scan(scan) => {
                let bound = |bound: &Option<Blob>| bound.as_ref().map_or(0, Blob::len);
                bound(&scan.start) + bound(&scan.end)
            }
            Body::MultiGet { keys } => keys.iter().map(Blob::len).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Epoch, KeyRange, NodeId, RangeId, Route, ShardId};

    #[test]
    fn a_refusal_leads_to_another_try_if_it_is_about_who_leads() {
        let there = Location {
            node: NodeId(2),
            shard: ShardId(1),
        };
        let epoch = Epoch {
            version: 3,
            conf: 1,
        };
        let route = |leader| Route {
            range: RangeId(4),
            epoch,
            keys: KeyRange::all(),
            leader,
        };
        let target = |range, version| {
            Some(Target {
                range: RangeId(range),
                epoch: Epoch { version, conf: 1 },
            })
        };
        let led = |error: Error, target| match refused(&error, target) {
            Some(Refused::LedAt(leader)) => Some(Some(leader)),
            Some(Refused::Unled) => Some(None),
            None => None,
        };
        let not_leader = |leader| Error::NotLeader(Some(Box::new(route(leader))));
        assert_eq!(led(not_leader(Some(there)), None), Some(Some(there)));
        assert_eq!(led(not_leader(None), target(4, 3)), Some(None));
        let moved = |leader| Error::Moved(vec![route(leader)]);
        assert_eq!(led(moved(Some(there)), None), Some(Some(there)));
        assert_eq!(led(moved(None), None), Some(None));
        assert_eq!(led(moved(Some(there)), target(4, 3)), Some(Some(there)));
        assert_eq!(led(Error::Moved(Vec::new()), target(4, 2)), Some(None));
        // The caller's target is wrong, or another try would not help.
        assert_eq!(led(moved(Some(there)), target(4, 2)), None);
        assert_eq!(led(moved(Some(there)), target(5, 3)), None);
        for error in [
            Error::NotLeader(None),
            Error::NoQuorum(Fate::NotApplied),
            Error::unknown("why"),
            Error::ShuttingDown,
        ] {
            assert_eq!(led(error, None), None);
        }
    }
}
