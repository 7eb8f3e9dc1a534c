//! Multi-gets: keys of any ranges in one request.
//!
//! [`Gateway::multi_get`] reads the keys of all ranges that this shard leads by a lease in one turn.
//! If that was all, the answer is given at once. Otherwise the rest makes up parts: the keys of each
//! range whose leadership a majority must confirm first, and the keys of each other shard to which
//! they are sent on, in one message. All parts are asked at the same time, and their results are put
//! together in the order of the keys.
//!
//! The keys of one range are read at one moment: all are in one part, and a part reads a range in one
//! turn. What goes wrong with a key or a part is the result of its keys alone.

use std::rc::Rc;

use futures_util::future::join_all;
use rangedb_limits::check_multi_get;

use super::forwarding::{self, Kind};
use super::message::{self, Body, Found};
use super::request::Call;
use super::responder::{Responder, Response};
use super::router::Lookup;
use super::values::{KeyRead, Values};
use super::{Gateway, deadline_left};
use crate::env::{AsyncRuntime, Env, Now};
use crate::error::Error;
use crate::request::Wait;
use crate::shard::KeyTurn;
use crate::types::{Blob, Location, RangeId, Timestamp};

/// What a part of the keys has to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaitsFor {
    /// For what reads of this range must wait for.
    Range(RangeId, Wait),
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
    /// For each key the part that it is in; `None`: it was read at once.
    part_of: Vec<Option<usize>>,
}

impl Split {
    fn new(keys: usize) -> Split {
        Split {
            here: Values::with_capacity(keys),
            parts: Vec::new(),
            part_of: Vec::with_capacity(keys),
        }
    }

    fn read(&mut self, read: KeyRead<'_>) {
        self.here.push(read);
        self.part_of.push(None);
    }

    fn later(&mut self, waits_for: WaitsFor, key: &[u8]) {
        let known = self
            .parts
            .iter()
            .rposition(|part| part.waits_for == waits_for);
        let at = known.unwrap_or_else(|| {
            let keys = Vec::new();
            self.parts.push(Part { waits_for, keys });
            self.parts.len() - 1
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

impl<E: Env> Gateway<E> {
    /// Reads the newest values of keys of any ranges; those of one range at one moment. Each key has a
    /// result of its own.
    ///
    /// # Errors
    /// Why the request is refused as a whole; then it has no other answer.
    pub fn multi_get<R: Responder>(
        &self,
        responder: &Rc<R>,
        call: &Call<E>,
        ticket: R::Ticket,
        keys: &[&[u8]],
    ) -> Result<(), R::Refusal> {
        check_multi_get(keys).map_err(Error::from)?;
        let mut split = Split::new(keys.len());
        self.inner.shard.multi_get(keys, |key, turn| match turn {
            KeyTurn::Found(found) => split.read(KeyRead::Found(found)),
            KeyTurn::Wait(range, wait) => split.later(WaitsFor::Range(range, wait), key),
            KeyTurn::Refused(error) => match self.leader_elsewhere(call, key, error) {
                Ok(to) => split.later(WaitsFor::Shard(to), key),
                Err(error) => split.read(KeyRead::Failed(&error)),
            },
        });
        if split.parts.is_empty() {
            responder.answer(&ticket, None, Ok(Response::Values(&split.here)));
            return Ok(());
        }
        let token = responder.hold(ticket)?;
        responder.departed(&ticket);
        let (gateway, responder) = (self.clone(), responder.clone());
        let call = Call {
            caller: call.caller,
            deadline: call.deadline,
            token: call.token,
            target: None,
        };
        drop(E::Runtime::spawn(async move {
            let asked = split.parts.iter().map(|part| gateway.ask(&call, part));
            let (parts, times): (Vec<Values>, Vec<Option<Timestamp>>) =
                join_all(asked).await.into_iter().unzip();
            responder.returned(&ticket);
            let all = together(&split.here, &parts, &split.part_of);
            // Every version must be at or below the time of the answer, also those of other nodes.
            let elsewhere = times.into_iter().flatten().max();
            let now = elsewhere.map(|time| time.max(gateway.inner.shard.now()));
            if let Some(ticket) = responder.release(token) {
                responder.answer(&ticket, now, Ok(Response::Values(&all)));
            }
        }));
        Ok(())
    }

    /// The shard to which a key is sent on that this one has refused to read, as it would be for a get.
    ///
    /// # Errors
    /// It is not sent on: the error that the caller gets.
    fn leader_elsewhere(
        &self,
        call: &Call<E>,
        key: &[u8],
        error: &Error,
    ) -> Result<Location, Error> {
        let route = match error {
            Error::Moved(None) => match self.look_up(key) {
                Lookup::Elsewhere(route) => route,
                Lookup::Here | Lookup::Unknown => return Err(Error::Moved(None)),
            },
            Error::NotLeader(Some(route)) if self.may_forward(call.caller, route) => {
                (**route).clone()
            }
            other => return Err(other.clone()),
        };
        match route.leader {
            Some(to) if self.may_forward(call.caller, &route) => Ok(to),
            _ => Err(Error::Moved(Some(Box::new(route)))),
        }
    }

    /// Gives the results of a part's keys, and the time of the cluster where they are from if that is
    /// another shard.
    async fn ask(&self, call: &Call<E>, part: &Part) -> (Values, Option<Timestamp>) {
        let asked = match part.waits_for {
            WaitsFor::Range(_, wait) => {
                let read = self.read_after(wait, &part.keys, call.deadline).await;
                read.map(|values| (values, None))
            }
            WaitsFor::Shard(to) => {
                let sent = self.send_on(to, call, part.keys.clone()).await;
                sent.map(|(values, now)| (values, Some(now)))
            }
        };
        asked.unwrap_or_else(|error| (Values::all_failed(part.keys.len(), &error), None))
    }

    /// Reads keys of one range when what their reads must wait for has come.
    async fn read_after(
        &self,
        wait: Wait,
        keys: &[Blob],
        deadline: Option<Now<E>>,
    ) -> Result<Values, Error> {
        let first = keys.first().map_or(&[][..], |key| key);
        self.wait(wait, first, None, deadline).await?;
        let mut values = Values::with_capacity(keys.len());
        let take = |read: KeyTurn<'_>| match read {
            KeyTurn::Found(found) => values.push(KeyRead::Found(found)),
            KeyTurn::Refused(error) => values.push(KeyRead::Failed(error)),
            KeyTurn::Wait(..) => values.push(KeyRead::NotRead),
        };
        self.inner.shard.multi_get_after(wait, keys, take)?;
        Ok(values)
    }

    /// Sends keys on to the shard that leads their ranges. Gives their results, and the time there.
    async fn send_on(
        &self,
        to: Location,
        call: &Call<E>,
        keys: Vec<Blob>,
    ) -> Result<(Values, Timestamp), Error> {
        let request = message::Request {
            left_us: call.deadline.map(deadline_left::<E>),
            token: call.token,
            target: None,
            body: Body::MultiGet { keys },
        };
        let shard = &self.inner.shard;
        let admitted = self.inner.forwarding.admit(shard, to, &request)?;
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
