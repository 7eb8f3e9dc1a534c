//! The answering side of forwarding. Each request gets one answer, which goes back to the shard that has
//! forwarded it. Lives on its shard's thread.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;
use openraft::async_runtime::{Oneshot, OneshotSender};

use super::Gateway;
use super::message::{self, Body, Found, Reply, Request};
use super::request::{Call, Caller};
use super::responder::{Responder, Response, Scanning};
use crate::env::{AsyncRuntime, Env, MessageClass};
use crate::error::Error;
use crate::mutant::{self, Mutant};
use crate::types::Timestamp;

type Sender<E> = <<<E as Env>::Runtime as AsyncRuntime>::Oneshot as Oneshot>::Sender<Bytes>;

/// A request that another shard has forwarded to this one.
struct Received<E: Env> {
    gateway: Gateway<E>,
    /// Takes the bytes of the reply.
    asker: RefCell<Option<Sender<E>>>,
    is_held: Cell<bool>,
}

impl<E: Env> Gateway<E> {
    /// Answers a message of another shard, of this class.
    pub async fn answer(&self, class: MessageClass, request: Bytes) -> Bytes {
        match class {
            MessageClass::Control | MessageClass::Bulk => self.shard().answer(request).await,
            MessageClass::Clients => self.receive(&request).await,
        }
    }

    pub(super) async fn receive(&self, request: &[u8]) -> Bytes {
        let (sender, receiver) = <E::Runtime as AsyncRuntime>::Oneshot::channel();
        let received = Rc::new(Received {
            gateway: self.clone(),
            asker: RefCell::new(Some(sender)),
            is_held: Cell::new(false),
        });
        let taken = match message::decode_request(request) {
            Some(request) => self.take(&received, request),
            None => Err(Error::Invalid(
                "the forwarded request cannot be read".to_owned(),
            )),
        };
        if let Err(error) = taken {
            received.answer(&(), None, Err(error));
        }
        // The responder answers before it goes.
        receiver.await.unwrap_or_default()
    }

    /// Handles a forwarded request.
    fn take(&self, received: &Rc<Received<E>>, request: Request) -> Result<(), Error> {
        let now = E::now();
        let call = Call {
            // Whatever goes to a shard with a replica, or to several, goes round for ever and in no time.
            caller: match mutant::is(Mutant::ForwardedAgain)
                && matches!(request.body, Body::Write { .. })
                && !self.inner.shard.holds(&request.body.first_key())
            {
                true => Caller {
                    follows_routes: false,
                },
                false => Caller::FORWARDER,
            },
            deadline: request.left().map(|left| now + left),
            token: request.token,
            target: match mutant::is(Mutant::ForwardedEpochUnchecked) {
                true => None,
                false => request.target,
            },
        };
        self.admit(&call, now)?;
        match request.body {
            Body::Get { key } => self.get(received, &call, (), &key),
            Body::Write { batch, session } => self.write(received, &call, (), (batch, session)),
            Body::Scan(scan) => self.scan(received, &call, (), scan),
            Body::MultiGet { keys } => {
                let keys: Vec<&[u8]> = keys.iter().map(|key| &**key).collect();
                self.multi_get(received, &call, (), &keys)
            }
        }
    }
}

impl<E: Env> Responder for Received<E> {
    type Ticket = ();
    type Refusal = Error;

    fn answer(&self, (): &(), now: Option<Timestamp>, response: Result<Response<'_>, Error>) {
        let result = response.map(Found::from);
        let now = now.unwrap_or_else(|| self.gateway.shard().now());
        let reply = message::encode_reply(&Reply { now, result });
        let asker = self.asker.borrow_mut().take();
        if let Some(asker) = asker {
            // The connection of the asking shard may have ended.
            let _ = asker.send(reply.into());
        }
    }

    fn hold(&self, (): ()) -> Result<u64, Error> {
        self.gateway.begin();
        self.is_held.set(true);
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
        drop(E::Runtime::spawn(scanning));
    }
}
