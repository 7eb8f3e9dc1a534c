//! The sending side of forwarding: requests of callers that do not follow routes go to the shard that leads
//! their range, on this node or on another. [`super::received`] is the other side.
//!
//! A request is one message over the transport, of class
//! [`MessageClass::Clients`](crate::env::MessageClass), so no append waits behind it. The other shard
//! forwards it no further: it answers, or says where the range is. If the connection breaks after the
//! message may have been sent, the fate of a write is unknown. The same holds if the other shard falls
//! silent: a process that is stopped keeps its connections open, so a shard that owes answers is asked from
//! time to time whether it is alive.
//!
//! The number of requests in flight to a shard, and the memory of all requests in flight, are shared fairly
//! by the ranges ([`crate::fair_share`]): a range whose leader is slow does not stop the requests for
//! others. Lives on its shard's thread.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{AbortHandle, AbortRegistration, Abortable};
use slab::Slab;

use super::admission::Part;
use super::message::{self, Body, Found, Reply};
use crate::boot_time::BootTime;
use crate::env::{AsyncRuntime, Env, MessageClass};
use crate::error::Error;
use crate::fair_share::Shared;
use crate::frame::BODY_LEN_MAX;
use crate::shard::Shard;
use crate::types::{Location, RangeId};

/// Most requests that one shard may have on their way to one other shard; for one range alone, half of them.
pub const FORWARDED_MAX: usize = 2048;
/// Most bytes of the requests that one shard may have on their way; for one range alone, half of them. A link
/// to another node has room for all of them: it would refuse without looking at ranges.
const FORWARDED_LEN_MAX: usize = 32 << 20;
/// When a refused caller should try again, in milliseconds.
const RETRY_AFTER_MS: u32 = 5;
/// A shard that owes answers and has sent none for this long is asked whether it is alive; so is
/// one that still sends none, at this interval.
/// By time: that a shard is silent is no event.
const ASK_AFTER: Duration = Duration::from_millis(200);
/// A shard that has answered nothing for this long, not even that question, counts as silent.
const SILENT_AFTER: Duration = Duration::from_millis(800);

/// The forwarded requests of one shard.
pub(super) struct Forwarding {
    /// Bytes of all requests.
    bytes: Rc<Shared<Option<RangeId>>>,
    owing: Rc<RefCell<BTreeMap<Location, Rc<Owing>>>>,
    /// How many requests were refused because their range has its share of the places to a shard.
    refused: Cell<u64>,
}

/// A shard that owes answers.
struct Owing {
    /// What gives up each request that it has not answered, by number.
    asked: RefCell<Slab<AbortHandle>>,
    /// The places on the way to it.
    places: Rc<Shared<Option<RangeId>>>,
    /// When it last answered anything, or was first asked.
    heard: Cell<BootTime>,
}

/// A request that may be sent: it has its room.
pub(super) struct Admitted {
    to: Location,
    message: Bytes,
    gives_up: AbortRegistration,
    room: Room,
}

/// The room of one request, released when it is dropped.
struct Room {
    owing: Rc<Owing>,
    /// The request's number there.
    number: usize,
    /// Its place there, and its bytes.
    _parts: [Part; 2],
}

impl Drop for Room {
    fn drop(&mut self) {
        self.owing.asked.borrow_mut().remove(self.number);
    }
}

impl Default for Forwarding {
    fn default() -> Forwarding {
        Forwarding {
            bytes: Rc::new(Shared::new(FORWARDED_LEN_MAX)),
            owing: Rc::default(),
            refused: Cell::new(0),
        }
    }
}

impl Forwarding {
    /// Takes room for a request to the shard at `to`; it counts for this range.
    ///
    /// # Errors
    /// [`Error::Overloaded`]: too many requests are on their way, and those of the range have their share.
    /// [`Error::Invalid`]: this one is too long.
    pub fn admit<E: Env>(
        &self,
        shard: &Shard<E>,
        (to, range): (Location, Option<RangeId>),
        request: &message::Request,
    ) -> Result<Admitted, Error> {
        let message: Bytes = message::encode_request(request).into();
        let len = message.len();
        // No request within the limits of keys and values is this long.
        if len > BODY_LEN_MAX {
            let rule = "the request is too long to be forwarded";
            return Err(Error::Invalid(rule.to_owned()));
        }
        let owing = self.owing(shard, to);
        let Some(parts) = parts(&owing.places, &self.bytes, (range, len)) else {
            self.refused.set(self.refused.get() + 1);
            let reason = "as many requests are on their way to other shards as may, and those of the range \
                          have their share";
            return Err(Error::overloaded(reason, RETRY_AFTER_MS));
        };
        let (handle, gives_up) = AbortHandle::new_pair();
        let number = owing.asked.borrow_mut().insert(handle);
        let room = Room {
            owing,
            number,
            _parts: parts,
        };
        Ok(Admitted {
            to,
            message,
            gives_up,
            room,
        })
    }

    /// How many requests were refused because their range has its share.
    pub fn refused(&self) -> u64 {
        self.refused.get()
    }

    /// What the shard at `to` owes. The first request starts a task that watches whether the shard is
    /// alive.
    fn owing<E: Env>(&self, shard: &Shard<E>, to: Location) -> Rc<Owing> {
        let mut all = self.owing.borrow_mut();
        if let Some(owing) = all.get(&to) {
            return owing.clone();
        }
        let owing = Rc::new(Owing {
            asked: RefCell::default(),
            places: Rc::new(Shared::new(FORWARDED_MAX)),
            heard: Cell::new(E::now()),
        });
        all.insert(to, owing.clone());
        // The task must not keep a shard that has been closed.
        let shard = shard.downgrade();
        let (all, watched) = (self.owing.clone(), owing.clone());
        drop(E::Runtime::spawn(async move {
            loop {
                E::Runtime::sleep(ASK_AFTER).await;
                let Some(shard) = shard.upgrade() else { break };
                if watched.asked.borrow().is_empty() {
                    break;
                }
                watched.look(&shard, to).await;
            }
            all.borrow_mut().remove(&to);
        }));
        owing
    }
}

/// A place for a request of a range, and its bytes; `None` if the range has its share of either.
fn parts(
    places: &Rc<Shared<Option<RangeId>>>,
    bytes: &Rc<Shared<Option<RangeId>>>,
    (range, len): (Option<RangeId>, usize),
) -> Option<[Part; 2]> {
    Some([places.take(range, 1)?, bytes.take(range, len)?])
}

impl Owing {
    /// Gives up all requests if the shard at `to` is silent.
    async fn look<E: Env>(&self, shard: &Shard<E>, to: Location) {
        if E::now() < self.heard.get() + ASK_AFTER {
            return;
        }
        if shard.is_answered_by(to).await {
            self.heard.set(E::now());
        } else if E::now() >= self.heard.get() + SILENT_AFTER {
            self.asked
                .borrow()
                .iter()
                .for_each(|(_, asked)| asked.abort());
            // Requests sent from now on get the full time.
            self.heard.set(E::now());
        }
    }
}

impl Admitted {
    /// Sends the request. Waits for the answer until the deadline, if there is one, and no longer than
    /// the other shard is alive.
    ///
    /// # Errors
    /// No answer came.
    pub async fn send<E: Env>(
        self,
        shard: &Shard<E>,
        until: Option<BootTime>,
    ) -> io::Result<Bytes> {
        let asking = shard.call(self.to, MessageClass::Clients, self.message);
        let asking = async {
            match until {
                None => asking.await,
                Some(until) => match E::Runtime::timeout_at(until.into(), asking).await {
                    Ok(answer) => answer,
                    Err(_) => Err(io::ErrorKind::TimedOut.into()),
                },
            }
        };
        let answer = match Abortable::new(asking, self.gives_up).await {
            Ok(answer) => answer,
            Err(_) => Err(io::ErrorKind::HostUnreachable.into()),
        };
        if answer.is_ok() {
            self.room.owing.heard.set(E::now());
        }
        answer
    }
}

/// The time until a deadline, in microseconds.
pub(super) fn deadline_left<E: Env>(deadline: BootTime) -> u64 {
    let left = deadline - E::now();
    u64::try_from(left.as_micros()).unwrap_or(u64::MAX)
}

/// The kind of request that an answer must suit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Get,
    Write,
    Scan,
    MultiGet,
}

impl Kind {
    /// The kind of a request.
    pub fn of(body: &Body) -> Kind {
        match body {
            Body::Get { .. } => Kind::Get,
            Body::Write { .. } => Kind::Write,
            Body::Scan(_) => Kind::Scan,
            Body::MultiGet { .. } => Kind::MultiGet,
        }
    }

    fn suits(self, found: &Found) -> bool {
        let found = match found {
            Found::Value(_) => Kind::Get,
            Found::Written(_) => Kind::Write,
            Found::Rows(_) => Kind::Scan,
            Found::Values(_) => Kind::MultiGet,
        };
        self == found
    }
}

/// The reply in an answer, or the error that the caller gets instead.
///
/// # Errors
/// There is no answer, or it is no reply to a request of this kind.
pub(super) fn reply(kind: Kind, answer: io::Result<Bytes>) -> Result<Reply, Error> {
    let error = match answer {
        Ok(bytes) => {
            let reply = message::decode_reply(&bytes);
            let reply = reply.filter(|reply| match &reply.result {
                Ok(found) => kind.suits(found),
                Err(_) => true,
            });
            let other = || Error::unknown("the leader's node answered something else");
            return reply.ok_or_else(other);
        }
        Err(error) => error,
    };
    let is_write = kind == Kind::Write;
    Err(match error.kind() {
        io::ErrorKind::WouldBlock => {
            let reason = "the link to the leader's node is full";
            Error::overloaded(reason, RETRY_AFTER_MS)
        }
        // The request was not sent.
        io::ErrorKind::NotConnected
        | io::ErrorKind::ConnectionRefused
        | io::ErrorKind::PermissionDenied => Error::NotLeader(None),
        io::ErrorKind::TimedOut if !is_write => Error::DeadlineExceeded,
        _ if !is_write => Error::NotLeader(None),
        io::ErrorKind::TimedOut => Error::unknown("the leader's node did not answer in time"),
        io::ErrorKind::HostUnreachable => Error::unknown("the leader's node has fallen silent"),
        _ => Error::unknown("the link to the leader's node broke"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Fate;
    use crate::gateway::values::Values;
    use crate::request::Outcome;
    use crate::types::Timestamp;

    fn answered(kind: Kind, answer: io::Result<Reply>) -> Result<Reply, Error> {
        let answer = answer.map(|reply| message::encode_reply(&reply).into());
        reply(kind, answer)
    }

    #[test]
    fn one_range_takes_neither_all_places_to_a_shard_nor_all_bytes() {
        let places = Rc::new(Shared::new(FORWARDED_MAX));
        let bytes = Rc::new(Shared::new(FORWARDED_LEN_MAX));
        let fill = |range, len| -> Vec<[Part; 2]> {
            let taken = || parts(&places, &bytes, (Some(RangeId(range)), len));
            std::iter::from_fn(taken).collect()
        };
        for len in [100, 64 << 10] {
            let flood = fill(1, len);
            let (most, all) = (FORWARDED_MAX / 2, FORWARDED_LEN_MAX / 2 / len);
            assert_eq!(flood.len(), most.min(all), "{len}");
            // Other ranges go on, also one that is not known here.
            let others = [Some(RangeId(2)), None];
            let others = others.map(|range| parts(&places, &bytes, (range, 1 << 20)));
            assert!(others.iter().all(Option::is_some));
            assert!(parts(&places, &bytes, (Some(RangeId(1)), len)).is_none());
            drop((flood, others));
            assert_eq!((places.used(), bytes.used()), (0, 0), "{len}");
        }
    }

    #[test]
    fn a_write_whose_message_may_have_been_sent_has_an_unknown_fate() {
        use io::ErrorKind::{
            ConnectionRefused, ConnectionReset, HostUnreachable, NotConnected, PermissionDenied,
            TimedOut, WouldBlock,
        };
        for (error, fate) in [
            (NotConnected, Fate::NotApplied),
            (ConnectionRefused, Fate::NotApplied),
            (PermissionDenied, Fate::NotApplied),
            (WouldBlock, Fate::NotApplied),
            (TimedOut, Fate::Unknown),
            (ConnectionReset, Fate::Unknown),
            (HostUnreachable, Fate::Unknown),
        ] {
            let write = answered(Kind::Write, Err(error.into())).expect_err("an error");
            assert_eq!(write.fate(), fate, "{error}");
            for kind in [Kind::Get, Kind::Scan, Kind::MultiGet] {
                let read = answered(kind, Err(error.into())).expect_err("an error");
                assert_eq!(read.fate(), Fate::NotApplied, "{error}");
            }
        }
    }

    #[test]
    fn an_answer_to_another_kind_of_request_is_none() {
        let of = |result| Reply {
            now: Timestamp(7),
            result,
        };
        let results = [
            (Kind::Get, Found::Value(None)),
            (Kind::Write, Found::Written(Outcome::Moved)),
            (
                Kind::Scan,
                Found::Rows(crate::request::ScanReply::default()),
            ),
            (Kind::MultiGet, Found::Values(Values::default())),
        ];
        for (kind, found) in results {
            for asked in [Kind::Get, Kind::Write, Kind::Scan, Kind::MultiGet] {
                let reply = of(Ok(found.clone()));
                let is_taken = answered(asked, Ok(reply)).is_ok();
                assert_eq!(is_taken, asked == kind, "{asked:?}, {kind:?}");
            }
        }
        let refused = of(Err(Error::ShuttingDown));
        assert_eq!(answered(Kind::Scan, Ok(refused.clone())), Ok(refused));
        let other = reply(Kind::Write, Ok(Bytes::from_static(b"no reply")));
        assert_eq!(other.expect_err("no reply").fate(), Fate::Unknown);
    }
}
