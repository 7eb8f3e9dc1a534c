//! Multi-gets: keys of any ranges in one request.
//!
//! [`Gateway::multi_get`] reads, in one turn, what it can of the ranges that this shard leads by a lease.
//! If those are all the keys, the answer is given at once. Otherwise the other keys are divided into parts:
//! the keys of each range that are left to later turns, because the time was up or a block must be read
//! from the disk; the keys of each range whose leadership a majority must confirm first; and, for each
//! other shard, the keys that are forwarded to it, in one message. All parts are asked at the same time,
//! and their results are put together in the order of the keys.
//!
//! The keys of one range are read at one moment, in however many turns: see [`Moment`]. An error of a key
//! or a part is the result of its keys alone. One error is handled here: if a range has no leader and the
//! caller follows no routes, all keys are read again a little later, as other requests wait for a leader
//! ([`super::leader_path`]).

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;

use futures_util::future::join_all;
use rangedb_limits::check_multi_get;
use rustc_hash::FxHashMap;

use super::Gateway;
use super::forwarding::{self, Kind, deadline_left};
use super::leader_path::{LeaderWait, Refused, refused};
use super::message::{self, Body, Found};
use super::request::Call;
use super::responder::{Responder, Response};
use super::router::leader_in;
use super::values::{KeyRead, Values};
use crate::boot_time::BootTime;
use crate::env::{AsyncRuntime, Env, TimeSlice};
use crate::error::Error;
use crate::request::Wait;
use crate::shard::{KeyFound, KeyTurn, Moment};
use crate::types::{Blob, Location, RangeId, Route, Timestamp};

/// What a part of the keys has to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum WaitsFor {
    /// For the next turn, which reads at this moment.
    Turn(Moment),
    /// For the confirmation that this replica leads the range.
    Confirmation(RangeId),
    /// For the answer of the shard there.
    Shard(Location),
}

/// Keys that are not read at once.
struct Part {
    waits_for: WaitsFor,
    keys: Vec<Blob>,
}

/// The keys of a multi-get, split by where and when they are read.
struct Split {
    /// What was read at once.
    here: Values,
    parts: Vec<Part>,
    /// The part of what waits for something.
    lookup: FxHashMap<WaitsFor, usize>,
    /// For each key the part that it is in; `None`: it was read at once.
    part_of: Vec<Option<usize>>,
}

impl Split {
    fn new(keys: usize) -> Split {
        Split {
            here: Values::with_capacity(keys),
            parts: Vec::new(),
            lookup: FxHashMap::default(),
            part_of: Vec::with_capacity(keys),
        }
    }

    fn read(&mut self, read: KeyRead<'_>) {
        self.here.push(read);
        self.part_of.push(None);
    }

    fn later(&mut self, waits_for: WaitsFor, key: &[u8]) {
        let parts = &mut self.parts;
        let at = *self.lookup.entry(waits_for).or_insert_with(|| {
            let keys = Vec::new();
            parts.push(Part { waits_for, keys });
            parts.len() - 1
        });
        if let Some(part) = self.parts.get_mut(at) {
            part.keys.push(Blob::copy_from_slice(key));
        }
        self.part_of.push(Some(at));
    }
}

/// Puts the results of all parts together, in the order of the keys.
fn together(here: &Values, parts: &[Values], part_of: &[Option<usize>]) -> Values {
    let mut here = here.keys();
    let mut parts: Vec<_> = parts.iter().map(Values::keys).collect();
    let mut all = Values::with_capacity(part_of.len());
    for part in part_of {
        let read = match part {
            None => here.next(),
            Some(part) => parts.get_mut(*part).and_then(Iterator::next),
        };
        all.push(read.unwrap_or(KeyRead::NotRead));
    }
    all
}

/// The first key that was not read because it is not known here which replica leads its range, with the routes
/// that the refusals name. `None`: there is no such key, or the caller follows routes.
fn unled<'k>(call: &Call, keys: &[&'k [u8]], values: &Values) -> Option<(&'k [u8], Vec<Route>)> {
    let is_unled = |error: &Error| refused(error, None).is_some();
    if call.caller.follows_routes || !values.errors().iter().any(is_unled) {
        return None;
    }
    let mut reads = keys.iter().zip(values.keys());
    let (key, _) = reads.find(|(_, read)| match read {
        KeyRead::Failed(error) => is_unled(error),
        KeyRead::Found(_) | KeyRead::NotRead => false,
    })?;
    let named = values.errors().iter().flat_map(|error| match error {
        Error::NotLeader(Some(route)) => std::slice::from_ref(&**route),
        Error::Moved(routes) => routes,
        _ => &[],
    });
    Some((key, named.cloned().collect()))
}

impl<E: Env> Gateway<E> {
    /// Reads the newest values of keys of any ranges; those of one range at one moment. Each key has a
    /// result of its own.
    ///
    /// # Errors
    /// Why the request is refused as a whole; then it has no other answer.
    pub fn multi_get<R: Responder>(
        &self,
        responder: &Rc<R>,
        call: &Call,
        ticket: R::Ticket,
        keys: &[&[u8]],
    ) -> Result<(), R::Refusal> {
        check_multi_get(keys).map_err(Error::from)?;
        let split = self.split(call, keys, &[]);
        if split.parts.is_empty() && unled(call, keys, &split.here).is_none() {
            responder.answer(&ticket, None, Ok(Response::Values(&split.here)));
            return Ok(());
        }
        let token = responder.hold(ticket)?;
        responder.departed(&ticket);
        let (gateway, responder) = (self.clone(), responder.clone());
        let mut call = *call;
        call.target = None;
        let copy = |key: &&[u8]| Blob::copy_from_slice(key);
        let keys: Vec<Blob> = match call.caller.follows_routes {
            true => Vec::new(),
            false => keys.iter().map(copy).collect(),
        };
        drop(E::Runtime::spawn(async move {
            let (all, now) = gateway.read_all(&call, &keys, split).await;
            responder.returned(&ticket);
            if let Some(ticket) = responder.release(token) {
                responder.answer(&ticket, now, Ok(Response::Values(&all)));
            }
        }));
        Ok(())
    }

    /// Reads what can be read at once of the keys, and splits the others. `named` are routes that other
    /// shards have just told.
    fn split(&self, call: &Call, keys: &[&[u8]], named: &[Route]) -> Split {
        let mut split = Split::new(keys.len());
        self.inner.shard.multi_get(keys, |key, turn| match turn {
            KeyTurn::Found(found) => split.read(KeyRead::Found(found)),
            KeyTurn::Left(moment) => split.later(WaitsFor::Turn(moment), key),
            KeyTurn::Unconfirmed(range) => split.later(WaitsFor::Confirmation(range), key),
            KeyTurn::Refused(error) => match self.leader_elsewhere(call, key, error, named) {
                Ok(to) => split.later(WaitsFor::Shard(to), key),
                Err(error) => split.read(KeyRead::Failed(&error)),
            },
        });
        split
    }

    /// Reads what is left of a split. While ranges of its keys have no leader, all keys of a caller that
    /// follows no routes are read anew, so that those of one range have one moment. `keys` are empty
    /// for other callers. Gives the time of the cluster if another shard has read keys.
    async fn read_all(
        &self,
        call: &Call,
        keys: &[Blob],
        split: Split,
    ) -> (Values, Option<Timestamp>) {
        let slices: Vec<&[u8]> = keys.iter().map(|key| &**key).collect();
        let len = slices.iter().map(|key| key.len()).sum();
        let mut routes = self.inner.shard.routes_version();
        let mut read = self.read_parts(call, split).await;
        let mut wait = None;
        while let Some((key, named)) = unled(call, &slices, &read.0) {
            let names_leader = named.iter().any(|route| {
                let elsewhere = |leader| leader != self.inner.here;
                route.leader.is_some_and(elsewhere)
            });
            let wait = wait.get_or_insert_with(|| LeaderWait::new(call.deadline, E::now()));
            let news = (names_leader, routes);
            match wait.pause(self, (key, len), news).await {
                Ok(true) => {}
                Ok(false) => {
                    read.0
                        .replace_errors(|error| self.why_unled(call, key, error));
                    break;
                }
                Err(why) => {
                    read.0.replace_errors(|error| match refused(error, None) {
                        Some(_) => why.clone(),
                        None => error.clone(),
                    });
                    break;
                }
            }
            routes = self.inner.shard.routes_version();
            let split = self.split(call, &slices, &named);
            read = self.read_parts(call, split).await;
        }
        read
    }

    /// Reads the parts of a split, all at the same time, and puts everything together.
    async fn read_parts(&self, call: &Call, split: Split) -> (Values, Option<Timestamp>) {
        let slice = RefCell::new(TimeSlice::begin());
        let asked = (split.parts.iter()).map(|part| self.ask_part(call, part, &slice));
        let mut asked = pin!(join_all(asked));
        // The parts share the time of a turn.
        let asked = poll_fn(|cx| {
            slice.replace(TimeSlice::begin());
            asked.as_mut().poll(cx)
        });
        let (parts, times): (Vec<Values>, Vec<Option<Timestamp>>) = asked.await.into_iter().unzip();
        let all = together(&split.here, &parts, &split.part_of);
        // Every version must be at or below the time of the answer, also those of other nodes.
        let elsewhere = times.into_iter().flatten().max();
        let now = elsewhere.map(|time| time.max(self.inner.shard.now()));
        (all, now)
    }

    /// The shard to which a key is sent on that this one has refused to read, as it would be for a get.
    ///
    /// # Errors
    /// It is not sent on: the error that the caller gets.
    fn leader_elsewhere(
        &self,
        call: &Call,
        key: &[u8],
        error: &Error,
        named: &[Route],
    ) -> Result<Location, Error> {
        let known = match error {
            Error::Moved(routes) if routes.is_empty() => {
                let lookup = self.look_up(key);
                if call.caller.follows_routes {
                    return Err(self.moved(None, &lookup, key));
                }
                leader_in(lookup, self.inner.here)
            }
            other => Err(other.clone()),
        };
        let told = named.iter().find(|route| route.keys.contains(key));
        let told = told.and_then(|route| route.leader);
        let leader = match &known {
            Ok(leader) => Some(told.unwrap_or(*leader)),
            Err(_) if call.caller.follows_routes => None,
            Err(error) => match refused(error, None) {
                Some(Refused::LedAt(leader)) => Some(told.unwrap_or(leader)),
                Some(Refused::Unled) => told,
                None => None,
            },
        };
        let elsewhere = leader.filter(|leader| *leader != self.inner.here);
        elsewhere.ok_or_else(|| known.err().unwrap_or(Error::Moved(Vec::new())))
    }

    /// Gives the results of a part's keys, and the time of the cluster where they are from if that is
    /// another shard.
    async fn ask_part(
        &self,
        call: &Call,
        part: &Part,
        slice: &RefCell<TimeSlice<E>>,
    ) -> (Values, Option<Timestamp>) {
        let asked = match part.waits_for {
            WaitsFor::Turn(moment) => {
                let read = self.read_at(moment, &part.keys, call.deadline, slice).await;
                Ok((read, None))
            }
            WaitsFor::Confirmation(_) => {
                let read = self.read_confirmed(&part.keys, call.deadline, slice).await;
                read.map(|values| (values, None))
            }
            WaitsFor::Shard(to) => {
                let sent = self.send_on(to, call, part.keys.clone()).await;
                sent.map(|(values, now)| (values, Some(now)))
            }
        };
        asked.unwrap_or_else(|error| (Values::all_failed(part.keys.len(), &error), None))
    }

    /// Reads keys of one range when a majority has confirmed that this replica leads it.
    async fn read_confirmed(
        &self,
        keys: &[Blob],
        deadline: Option<BootTime>,
        slice: &RefCell<TimeSlice<E>>,
    ) -> Result<Values, Error> {
        let first = keys.first().map_or(&[][..], |key| key);
        self.wait(Wait::Confirmation, first, None, deadline).await?;
        let moment = self.inner.shard.moment_confirmed(first)?;
        Ok(self.read_at(moment, keys, deadline, slice).await)
    }

    /// Reads keys of one range at a moment. Those that are not read by the deadline have failed.
    async fn read_at(
        &self,
        moment: Moment,
        keys: &[Blob],
        deadline: Option<BootTime>,
        slice: &RefCell<TimeSlice<E>>,
    ) -> Values {
        let mut values = Values::with_capacity(keys.len());
        let take = |read: KeyFound<'_>| match read {
            Ok(found) => values.push(KeyRead::Found(found)),
            Err(error) => values.push(KeyRead::Failed(error)),
        };
        let reading = self.inner.shard.multi_get_at(&moment, keys, slice, take);
        match deadline {
            // Without a deadline or before it every key has a result.
            Some(until) => drop(E::Runtime::timeout_at(until.into(), reading).await),
            None => reading.await,
        }
        while values.results().len() < keys.len() {
            values.push(KeyRead::Failed(&Error::DeadlineExceeded));
        }
        values
    }

    /// Sends keys on to the shard that leads their ranges. Gives their results, and the time there.
    async fn send_on(
        &self,
        to: Location,
        call: &Call,
        keys: Vec<Blob>,
    ) -> Result<(Values, Timestamp), Error> {
        // Those of several ranges count for the first one.
        let range = keys.first().and_then(|key| self.range_of(key));
        let request = message::Request {
            left_us: call.deadline.map(deadline_left::<E>),
            token: call.token,
            target: None,
            body: Body::MultiGet { keys },
        };
        let shard = &self.inner.shard;
        let admitted = self.inner.forwarding.admit(shard, (to, range), &request)?;
        let answer = admitted.send(shard, call.deadline).await;
        let reply = forwarding::reply(Kind::MultiGet, answer)?;
        match reply.result? {
            Found::Values(values) => Ok((values, reply.now)),
            Found::Value(_) | Found::Written(_) | Found::Rows(_) => {
                Err(Error::unknown("the leader's node answered something else"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_put_together_in_the_order_of_the_keys() {
        let at = |value: &'static [u8]| KeyRead::Found(Some((value, Timestamp(1))));
        let of = |reads: &[KeyRead<'_>]| {
            let mut values = Values::default();
            reads.iter().for_each(|read| values.push(*read));
            values
        };
        let error = Error::NotLeader(None);
        let here = of(&[at(b"a"), KeyRead::Found(None)]);
        let parts = [
            of(&[at(b"bb"), KeyRead::Failed(&error)]),
            of(&[KeyRead::NotRead, at(b"ccc")]),
        ];
        let part_of = [Some(1), None, Some(0), Some(1), None, Some(0), Some(1)];
        let all = together(&here, &parts, &part_of);
        let wanted = [
            KeyRead::NotRead,
            at(b"a"),
            at(b"bb"),
            at(b"ccc"),
            KeyRead::Found(None),
            KeyRead::Failed(&error),
            // The answer of a part may be too short.
            KeyRead::NotRead,
        ];
        assert_eq!(all.keys().collect::<Vec<_>>(), wanted);
    }
}
