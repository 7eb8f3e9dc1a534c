//! A request that another shard of this node has forwarded: the key is here, the connection there.

use std::cell::Cell;
use std::rc::Rc;

use rangedb_engine::error::Error;
use rangedb_engine::request::Outcome;
use rangedb_engine::shard::WriteSink;
use rangedb_engine::types::ShardId;

use crate::env::reactor;
use crate::handler::refusal::Refusal;
use crate::handler::scan::LocalScan;
use crate::handler::{Asked, Call, Origin, reply};
use crate::shard::context::Context;
use crate::shard::message::{ForwardId, ShardReply};

/// A forwarded request, as the source of a call: its reply goes to the other shard.
pub struct Forwarded {
    context: Rc<Context>,
    from: ShardId,
    id: ForwardId,
    asked: Cell<Option<Asked>>,
}

impl Forwarded {
    /// The request `id` of the shard `from`.
    pub fn new(context: Rc<Context>, from: ShardId, id: ForwardId) -> Rc<Forwarded> {
        Rc::new(Forwarded {
            context,
            from,
            id,
            asked: Cell::new(None),
        })
    }
}

impl WriteSink for Forwarded {
    fn complete(&self, token: u64, result: Result<Outcome, Error>) {
        if let Some(asked) = self.release(token) {
            self.send(|to| reply::outcome(&self.context, &asked, result, to));
        }
    }
}

impl Origin for Forwarded {
    fn is_smart(&self) -> bool {
        // A request is forwarded once. If the key is not here either, the client gets the route.
        true
    }

    fn may_leave(&self) -> bool {
        // Only requests of plain clients are forwarded, and this one has not left the node yet.
        true
    }

    fn send(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut frame = Vec::new();
        write(&mut frame);
        self.context
            .mesh
            .reply(self.from, ShardReply::Frame { id: self.id, frame });
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
