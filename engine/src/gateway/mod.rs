//! The gateway: the layer between the clients' requests and the shard.
//!
//! A [`Gateway`] decides what becomes of a request for a key: this shard answers it, or the caller gets the
//! route, or the gateway forwards the request, once, to the shard that leads the range, on this node or on
//! another. It owns the [`directory`], the forwarding, and the counts of what is in flight. Requests and
//! answers are the engine's own types: the gateway sees no frame and no socket. The server turns frames
//! into calls of it, and takes the answers as a [`Responder`]; so does the simulator, without frames.
//!
//! ```text
//!   a client's connection ---> Gateway ---> Shard            the range is led here
//!      (Responder)                |
//!                                 +-------> Gateway ---> Shard      on another shard or node
//!                                  one message (MessageClass::Clients)
//! ```
//!
//! **The path of a get.** [`Gateway::get`] asks the shard, which passes the value to [`Responder::answer`]
//! without copying it. While the lease holds, nothing is allocated, copied or awaited. A read that must
//! wait, for a majority or for the disk ([`Read::Wait`]), goes on in a task: it waits for what the read
//! names, then looks again, until nothing is left to wait for.
//!
//! **Several keys** in one request: see [`multi_get`].
//!
//! **Forwarding.** The first shard sends the request with the time that is left and the range that the
//! caller believes in; the second one checks both again. It never forwards: if it does not lead
//! either, its error says where the range is, and the first one sends the request there. While the range
//! has no leader the request waits at the first shard: see [`leader_path`].
//!
//! Lives on its shard's thread.

mod admission;
pub mod directory;
mod forwarding;
#[cfg(test)]
mod fuzz;
mod leader_path;
pub mod message;
mod multi_get;
mod orders;
mod received;
pub mod request;
pub mod responder;
pub mod router;
pub mod values;

use std::cell::RefCell;
use std::rc::Rc;

use admission::Admission;
pub use admission::Held;
use directory::{Directory, Routes};
pub use forwarding::FORWARDED_MAX;
use forwarding::Forwarding;
use message::{Body, Found};
pub use orders::{Order, OrderFailure};
use request::Call;
use responder::{Responder, Response};
use router::Lookup;

use crate::boot_time::BootTime;
use crate::cluster::View;
use crate::env::{AsyncRuntime, Env};
use crate::error::{Error, Fate};
use crate::request::{Batch, Read, RequestId, ScanReply, ScanRequest, Target, Wait};
use crate::shard::{Shard, WriteRequest};
use crate::types::{Blob, Location, Route, ShardId};

/// What the clones of a [`Gateway`] share.
struct GatewayInner<E: Env> {
    shard: Shard<E>,
    here: Location,
    admission: Admission,
    routes: RefCell<Routes>,
    directory: RefCell<Rc<Directory>>,
    forwarding: Forwarding,
}

/// The gateway of a shard. Clones are the same gateway.
pub struct Gateway<E: Env> {
    inner: Rc<GatewayInner<E>>,
}

impl<E: Env> Clone for Gateway<E> {
    fn clone(&self) -> Gateway<E> {
        Gateway {
            inner: self.inner.clone(),
        }
    }
}

impl<E: Env> Gateway<E> {
    /// The gateway of a shard. It knows the shard's own ranges, and follows the views of the cluster.
    pub fn new(shard: Shard<E>) -> Gateway<E> {
        let here = shard.location();
        let inner = Rc::new(GatewayInner {
            here,
            admission: Admission::default(),
            routes: RefCell::default(),
            directory: RefCell::default(),
            forwarding: Forwarding::default(),
            shard,
        });
        inner.learn(|routes| routes.learn_view(&inner.shard.view()));
        let following = Rc::downgrade(&inner);
        inner.shard.on_view(move |view: &View| {
            if let Some(inner) = following.upgrade() {
                inner.learn(|routes| routes.learn_view(view));
            }
        });
        let gateway = Gateway { inner };
        gateway.learn_routes(here.shard, gateway.shard().routes());
        gateway
    }

    /// The shard.
    pub fn shard(&self) -> &Shard<E> {
        &self.inner.shard
    }

    /// The directory as it is now.
    pub fn directory(&self) -> Rc<Directory> {
        self.inner.directory.borrow().clone()
    }

    /// Takes the routes of a shard of this node.
    pub fn learn_routes(&self, of: ShardId, routes: Vec<Route>) {
        let node = self.inner.here.node;
        self.inner
            .learn(|known| known.learn_shard(node, of, routes));
    }

    /// Refuses all requests from now on.
    pub fn shut_down(&self) {
        self.inner.admission.shut_down();
    }

    /// Whether all requests are refused, because the node is stopping.
    pub fn is_shutting_down(&self) -> bool {
        self.inner.admission.is_shutting_down()
    }

    /// How many requests are held for an answer that comes later.
    pub fn in_flight(&self) -> usize {
        self.inner.admission.in_flight()
    }

    /// How many requests were refused because their range has its share of what the ranges of the shard
    /// share.
    pub fn overloaded(&self) -> u64 {
        let GatewayInner {
            admission,
            forwarding,
            shard,
            ..
        } = self.inner.as_ref();
        shard.overloaded() + admission.refused() + forwarding.refused()
    }

    /// Waits until no request is held.
    pub async fn idle(&self) {
        self.inner.admission.idle().await;
    }

    /// Counts a request that a responder holds.
    pub fn begin(&self) {
        self.inner.admission.begin();
    }

    /// Counts a request that a responder has released.
    pub fn end(&self) {
        self.inner.admission.end();
    }

    /// Checks what holds for every request: the node serves, the deadline has not passed, and the
    /// caller's token is possible. To be called before all that follows.
    ///
    /// # Errors
    /// [`Error::ShuttingDown`], [`Error::DeadlineExceeded`], [`Error::ClockOutOfBounds`].
    pub fn admit(&self, call: &Call, now: BootTime) -> Result<(), Error> {
        let is_late = call.deadline.is_some_and(|deadline| deadline <= now);
        let take = || self.inner.shard.take_token(call.token);
        self.inner.admission.admit(is_late, call.token, take)
    }

    /// Brings what gets of these keys need soon into the processor's caches; see [`Shard::prefetch`].
    pub fn prefetch<'k>(&self, keys: impl Iterator<Item = &'k [u8]>) {
        self.inner.shard.prefetch(keys);
    }

    /// Reads the newest value of a key.
    ///
    /// # Errors
    /// Why the request is refused; then it has no other answer.
    pub fn get<R: Responder>(
        &self,
        responder: &Rc<R>,
        call: &Call,
        ticket: R::Ticket,
        key: &[u8],
    ) -> Result<(), R::Refusal> {
        let read = self.inner.shard.get(key, call.target, |found| {
            responder.answer(&ticket, None, Ok(Response::Value(found)));
        });
        let error = match read {
            Ok(Read::Done(())) => return Ok(()),
            Ok(Read::Wait(wait)) => return self.get_after(wait, responder, call, ticket, key),
            Err(error) => error,
        };
        let body = || Body::Get {
            key: Blob::copy_from_slice(key),
        };
        match error {
            // The shard is asked before the directory, since most requests come to the right shard.
            Error::Moved(routes) if routes.is_empty() => {
                let lookup = self.look_up(key);
                self.elsewhere(responder, call, ticket, (lookup, key), body())
            }
            error if self.carries(call, &error) => {
                self.carry(responder, call, ticket, body(), Err(error))
            }
            error => Err(error.into()),
        }
    }

    /// Reads a key when what the read must wait for has come.
    fn get_after<R: Responder>(
        &self,
        wait: Wait,
        responder: &Rc<R>,
        call: &Call,
        ticket: R::Ticket,
        key: &[u8],
    ) -> Result<(), R::Refusal> {
        let token = responder.hold(ticket)?;
        let (gateway, responder) = (self.clone(), responder.clone());
        let (key, call) = (Blob::copy_from_slice(key), *call);
        drop(E::Runtime::spawn(async move {
            let (target, deadline) = (call.target, call.deadline);
            let mut wait = wait;
            loop {
                let waited = gateway.wait(wait, &key, target, deadline).await;
                let shard = &gateway.inner.shard;
                let read = waited.and_then(|()| {
                    shard.get_after(wait, &key, target, |found| {
                        if let Some(ticket) = responder.release(token) {
                            responder.answer(&ticket, None, Ok(Response::Value(found)));
                        }
                    })
                });
                match read {
                    Ok(Read::Done(())) => return,
                    Ok(Read::Wait(more)) => wait = more,
                    Err(error) if gateway.carries(&call, &error) => {
                        let body = Body::Get { key };
                        let held = (ticket, token);
                        return gateway.carry_held(&responder, &call, held, body, Err(error));
                    }
                    Err(error) => return refuse(responder.as_ref(), token, error),
                }
            }
        }));
        Ok(())
    }

    /// Waits for what a read must wait for, until the deadline. Without one the wait for a majority
    /// ends by itself if none answers for a while.
    async fn wait(
        &self,
        wait: Wait,
        key: &[u8],
        target: Option<Target>,
        deadline: Option<BootTime>,
    ) -> Result<(), Error> {
        let shard = &self.inner.shard;
        let waiting = shard.wait(wait, key, target);
        let Some(until) = deadline else {
            return waiting.await;
        };
        let waited = E::Runtime::timeout_at(until.into(), waiting).await;
        waited.unwrap_or_else(|_| {
            Err(match shard.lacks_quorum(key) {
                true => Error::NoQuorum(Fate::NotApplied),
                false => Error::DeadlineExceeded,
            })
        })
    }

    /// Proposes a write.
    ///
    /// # Errors
    /// Why the request is refused; then it has no other answer.
    pub fn write<R: Responder>(
        &self,
        responder: &Rc<R>,
        call: &Call,
        ticket: R::Ticket,
        (batch, session): (Batch, RequestId),
    ) -> Result<(), R::Refusal> {
        let key = batch.first_key();
        let lookup = key.map_or(Lookup::Here, |key| self.look_up_for(call.caller, key));
        if !matches!(lookup, Lookup::Here) {
            let key = key.cloned().unwrap_or_default();
            let body = Body::Write { batch, session };
            return self.elsewhere(responder, call, ticket, (lookup, &key), body);
        }
        let request = WriteRequest {
            target: call.target,
            session,
            deadline: call.deadline,
        };
        let token = responder.hold(ticket)?;
        let sink = self.write_sink(responder, call, ticket, (&batch, session));
        self.inner.shard.write(batch, request, sink, token);
        Ok(())
    }

    /// Scans rows of one range.
    ///
    /// # Errors
    /// Why the request is refused; then it has no other answer.
    pub fn scan<R: Responder>(
        &self,
        responder: &Rc<R>,
        call: &Call,
        ticket: R::Ticket,
        scan: ScanRequest,
    ) -> Result<(), R::Refusal> {
        let key = scan.first_key();
        let lookup = self.look_up_for(call.caller, &key);
        if !matches!(lookup, Lookup::Here) {
            return self.elsewhere(responder, call, ticket, (lookup, &key), Body::Scan(scan));
        }
        let token = responder.hold(ticket)?;
        let (gateway, answering, call) = (self.clone(), responder.clone(), *call);
        let scanning = async move {
            let answering = answering.as_ref();
            match gateway.scan_here(&call, scan.clone()).await {
                Ok(rows) => {
                    if let Some(ticket) = answering.release(token) {
                        answering.answer(&ticket, None, Ok(Response::Rows(&rows)));
                    }
                }
                Err(error) if gateway.carries(&call, &error) => {
                    let body = Body::Scan(scan);
                    match gateway.answer_of_leader(&call, body, Err(error)).await {
                        Ok(reply) => pass_on(answering, token, reply),
                        Err(error) => refuse(answering, token, error),
                    }
                }
                Err(error) => refuse(answering, token, error),
            }
        };
        responder.scan(token, Box::pin(scanning));
        Ok(())
    }

    /// Scans rows of a range that this shard leads.
    async fn scan_here(&self, call: &Call, scan: ScanRequest) -> Result<ScanReply, Error> {
        let GatewayInner {
            admission, shard, ..
        } = self.inner.as_ref();
        let _running = admission.begin_scan(shard.range_of(&scan.first_key()))?;
        shard.scan(scan, call.target, call.deadline).await
    }
}

/// Answers a request as the shard did to which it was forwarded.
fn pass_on<R: Responder>(responder: &R, token: u64, reply: message::Reply) {
    let Some(ticket) = responder.release(token) else {
        return;
    };
    let response = match &reply.result {
        Ok(Found::Value(found)) => {
            let found = found.as_ref();
            Ok(Response::Value(
                found.map(|found| (&*found.value, found.version)),
            ))
        }
        Ok(Found::Written(outcome)) => Ok(Response::Written(outcome.clone())),
        Ok(Found::Rows(rows)) => Ok(Response::Rows(rows)),
        Ok(Found::Values(values)) => Ok(Response::Values(values)),
        Err(error) => Err(error.clone()),
    };
    responder.answer(&ticket, Some(reply.now), response);
}

/// Answers a request that is held with an error.
fn refuse<R: Responder>(responder: &R, token: u64, error: Error) {
    if let Some(ticket) = responder.release(token) {
        responder.answer(&ticket, None, Err(error));
    }
}

impl<E: Env> GatewayInner<E> {
    /// Takes new routes, and makes the directory anew.
    fn learn(&self, take: impl FnOnce(&mut Routes)) {
        let mut routes = self.routes.borrow_mut();
        take(&mut routes);
        let directory = routes.directory(&self.directory.borrow());
        *self.directory.borrow_mut() = Rc::new(directory);
    }
}
