//! Forwards requests of plain clients to the shard of another node that leads their range.
//!
//! A client that does not follow routes may ask any node. Its frame goes unchanged over a link to
//! the leader's shard, once. There it is handled like one that was forwarded within the node, and
//! the reply's frame comes back to the client. The link is not one of those that serve the replicas
//! ([`Traffic::Clients`]), so no client's request stands in front of an append. The body of a frame
//! of kind [`super::kind::CARRY`] is the time that is left in milliseconds (four bytes; 0: the
//! client sets no limit), and the client's frame.
//!
//! If the link breaks when the frame may have been sent, the fate of a write is unknown. The same
//! holds if the other shard falls silent: a process that is stopped keeps its connections open, so
//! a shard that owes answers is asked from time to time whether it is alive ([`Owing`]). Lives on
//! its shard's thread.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use futures_util::pin_mut;
use rangedb_engine::env::{AsyncRuntime, Instant};
use rangedb_engine::error::Error;
use rangedb_engine::frame::BODY_LEN_MAX;
use rangedb_engine::request::Outcome;
use rangedb_engine::shard::WriteSink;
use rangedb_engine::types::{Location, ShardId};
use rangedb_protocol::frame;
use tokio::sync::Notify;

use super::link::{Links, Traffic};
use crate::env::{GlommioRuntime, Now, reactor};
use crate::handler::refusal::Refusal;
use crate::handler::scan::LocalScan;
use crate::handler::{self, Asked, Call, Origin, Times, reply};
use crate::shard::context::Context;

/// Most requests that one shard may have on their way to other nodes, and most that are answered at
/// a time over one link.
pub const CARRIED_MAX: usize = 1024;
/// Most bytes of the requests that one shard may have on their way.
const CARRIED_LEN_MAX: usize = 64 << 20;
/// When a refused client should try again, in milliseconds.
const RETRY_AFTER_MS: u32 = 5;
/// A shard that owes answers and has sent none for this long is asked whether it is alive; so is
/// one that still sends none, at this interval.
const ASK_AFTER: Duration = Duration::from_millis(200);
/// A shard that has answered nothing for this long, not even that question, counts as silent.
const SILENT_AFTER: Duration = Duration::from_millis(800);
/// Bytes before the client's frame: the time that is left.
const HEAD_LEN: usize = 4;

/// The forwarded requests of one shard.
pub struct Carriers {
    /// The shard's links to other nodes.
    pub links: Links,
    count: Rc<Cell<usize>>,
    len: Rc<Cell<usize>>,
    owing: RefCell<BTreeMap<Location, Rc<Owing>>>,
}

/// A shard of another node that owes answers.
struct Owing {
    answers: Cell<usize>,
    /// When it last answered anything, or was first asked.
    heard: Cell<Now>,
    silent: Notify,
}

impl Carriers {
    /// Forwards over a shard's links.
    pub fn new(links: Links) -> Carriers {
        Carriers {
            links,
            count: Rc::default(),
            len: Rc::default(),
            owing: RefCell::default(),
        }
    }

    fn room(&self, len: usize) -> Result<Room, Error> {
        if self.count.get() >= CARRIED_MAX || self.len.get() + len > CARRIED_LEN_MAX {
            return Err(overloaded(
                "too many requests are on their way to other nodes",
            ));
        }
        self.count.set(self.count.get() + 1);
        self.len.set(self.len.get() + len);
        let (all, all_len) = (self.count.clone(), self.len.clone());
        Ok(Room { all, all_len, len })
    }
}

/// Sends a request to the shard at `to`. Waits for the answer until the deadline, if there is one,
/// and no longer than the other shard is alive.
async fn ask(
    context: &Rc<Context>,
    to: Location,
    question: Bytes,
    deadline: Option<Now>,
) -> io::Result<Bytes> {
    let owing = owing(context, to);
    let asking = async {
        let asking = context.carriers.links.ask(to, Traffic::Clients, question);
        match deadline {
            None => asking.await,
            Some(until) => match GlommioRuntime::timeout_at(until, asking).await {
                Ok(answer) => answer,
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            },
        }
    };
    let silent = owing.silent.notified();
    pin_mut!(asking, silent);
    let answer = match select(asking, silent).await {
        Either::Left((answer, _)) => answer,
        Either::Right(_) => Err(io::ErrorKind::HostUnreachable.into()),
    };
    if answer.is_ok() {
        owing.heard.set(Now::now());
    }
    owing.answers.set(owing.answers.get() - 1);
    answer
}

/// Counts one more answer that a shard owes. The first starts a task that watches whether the shard
/// is alive.
fn owing(context: &Rc<Context>, to: Location) -> Rc<Owing> {
    let mut all = context.carriers.owing.borrow_mut();
    if let Some(owing) = all.get(&to) {
        owing.answers.set(owing.answers.get() + 1);
        return owing.clone();
    }
    let owing = Rc::new(Owing {
        answers: Cell::new(1),
        heard: Cell::new(Now::now()),
        silent: Notify::new(),
    });
    all.insert(to, owing.clone());
    let (context, watched) = (context.clone(), owing.clone());
    reactor::spawn_local(async move {
        while watched.answers.get() > 0 {
            GlommioRuntime::sleep(ASK_AFTER).await;
            if Now::now() < watched.heard.get() + ASK_AFTER {
                continue;
            }
            if context.shard.is_answered_by(to).await {
                watched.heard.set(Now::now());
            } else if Now::now() >= watched.heard.get() + SILENT_AFTER {
                watched.silent.notify_waiters();
                // Requests sent from now on get the full time.
                watched.heard.set(Now::now());
            }
        }
        context.carriers.owing.borrow_mut().remove(&to);
    })
    .detach();
    owing
}

fn overloaded(reason: &'static str) -> Error {
    Error::Overloaded {
        reason,
        retry_after_ms: RETRY_AFTER_MS,
    }
}

/// The room of one request, released when it is dropped.
struct Room {
    all: Rc<Cell<usize>>,
    all_len: Rc<Cell<usize>>,
    len: usize,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.all.set(self.all.get() - 1);
        self.all_len.set(self.all_len.get() - self.len);
    }
}

/// Forwards a client's request to the shard that leads its range. The reply goes to the client.
///
/// # Errors
/// Too many requests are on their way, or this one is too long.
pub fn send<O: Origin>(
    context: &Rc<Context>,
    origin: &Rc<O>,
    call: &Call<'_>,
    to: Location,
) -> Result<(), Refusal> {
    let now = Now::now();
    let body = encode(call, now);
    // No request within the limits of keys and values is this long.
    if body.len() > BODY_LEN_MAX {
        return Err(Error::Invalid("the request is too long to be carried".to_owned()).into());
    }
    let room = context.carriers.room(body.len())?;
    let deadline = call.deadline;
    let token = origin.hold(call.asked)?;
    let operation = call.asked.operation;
    origin.departed(operation);
    let (context, origin) = (context.clone(), origin.clone());
    reactor::spawn_local(async move {
        let answer = ask(&context, to, body, deadline).await;
        drop(room);
        origin.returned(operation);
        let Some(asked) = origin.release(token) else {
            return;
        };
        match checked(&asked, answer) {
            Ok(frame) => origin.send(|to| to.extend_from_slice(&frame)),
            Err(error) => {
                origin.send(|to| reply::refusal(&context, asked.request, &error.into(), to));
            }
        }
    })
    .detach();
    Ok(())
}

fn encode(call: &Call<'_>, now: Now) -> Bytes {
    let left_ms = call.deadline.map_or(0, |deadline| {
        let left = deadline.saturating_duration_since(now).as_millis();
        u32::try_from(left).unwrap_or(u32::MAX).max(1)
    });
    let mut body = Vec::with_capacity(HEAD_LEN + call.frame.len());
    body.extend_from_slice(&left_ms.to_le_bytes());
    body.extend_from_slice(call.frame);
    body.into()
}

/// Gives the reply's frame, or the error to answer instead.
fn checked(asked: &Asked, answer: io::Result<Bytes>) -> Result<Bytes, Error> {
    let is_write = asked.operation.is_write();
    match answer {
        Ok(bytes) => {
            let is_reply = matches!(
                frame::decode(&bytes),
                Ok(Some(found)) if found.len == bytes.len() && found.id == asked.request
            );
            if is_reply {
                return Ok(bytes);
            }
            Err(Error::Unknown("the leader's node answered something else"))
        }
        Err(error) => Err(match error.kind() {
            io::ErrorKind::WouldBlock => overloaded("the link to the leader's node is full"),
            io::ErrorKind::NotConnected => Error::NotLeader(None),
            io::ErrorKind::TimedOut if !is_write => Error::DeadlineExceeded,
            _ if !is_write => Error::NotLeader(None),
            io::ErrorKind::TimedOut => Error::Unknown("the leader's node did not answer in time"),
            io::ErrorKind::HostUnreachable => Error::Unknown("the leader's node has fallen silent"),
            _ => Error::Unknown("the link to the leader's node broke"),
        }),
    }
}

/// Handles a request that another node has forwarded to this shard.
///
/// # Errors
/// The body is not a forwarded request.
pub fn receive(context: &Rc<Context>, carried: &Rc<Carried>, body: &[u8]) -> io::Result<()> {
    let bad = || io::Error::other("a carried request that cannot be read");
    let (head, frame) = body.split_first_chunk::<HEAD_LEN>().ok_or_else(bad)?;
    let left = Duration::from_millis(u64::from(u32::from_le_bytes(*head)));
    let found = frame::decode(frame).ok().flatten().ok_or_else(bad)?;
    if found.len != frame.len() {
        return Err(bad());
    }
    let now = Now::now();
    let times = Times {
        received: now,
        now,
        deadline: (!left.is_zero()).then(|| now + left),
    };
    handler::handle(context, carried, found, frame, times).map_err(|_| bad())
}

/// Takes the reply's frame.
type TakeReply = Box<dyn FnOnce(&[u8])>;

/// A forwarded request, as the source of a call: it takes one reply.
pub struct Carried {
    context: Rc<Context>,
    reply: Cell<Option<TakeReply>>,
    asked: Cell<Option<Asked>>,
}

impl Carried {
    /// A request whose reply's frame `reply` takes.
    pub fn new(context: Rc<Context>, reply: impl FnOnce(&[u8]) + 'static) -> Rc<Carried> {
        Rc::new(Carried {
            context,
            reply: Cell::new(Some(Box::new(reply))),
            asked: Cell::new(None),
        })
    }
}

impl WriteSink for Carried {
    fn complete(&self, token: u64, result: Result<Outcome, Error>) {
        if let Some(asked) = self.release(token) {
            self.send(|to| reply::outcome(&self.context, &asked, result, to));
        }
    }
}

impl Origin for Carried {
    fn is_smart(&self) -> bool {
        // A request is forwarded once. If the key is not here either, the client gets the route.
        true
    }

    fn may_leave(&self) -> bool {
        false
    }

    fn send(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut frame = Vec::new();
        write(&mut frame);
        if let Some(reply) = self.reply.take() {
            reply(&frame);
        }
    }

    fn hold(&self, asked: Asked) -> Result<u64, Refusal> {
        self.context.begin();
        self.asked.set(Some(asked));
        Ok(0)
    }

    fn release(&self, _token: u64) -> Option<Asked> {
        let asked = self.asked.take()?;
        self.context.end();
        Some(asked)
    }

    fn forward(self: &Rc<Self>, _to: ShardId, _call: &Call<'_>) -> Result<(), Refusal> {
        Err(Error::Moved(None).into())
    }

    fn scan(self: &Rc<Self>, scan: LocalScan) {
        let origin = self.clone();
        reactor::spawn_local(async move { scan.run(&origin.context, origin.as_ref()).await })
            .detach();
    }
}
