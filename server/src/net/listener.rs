//! Accepts connections on one shard's socket.

use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::AsyncRuntime;

use crate::context::Context;
use crate::env::GlommioRuntime;
use crate::env::reactor::{TcpListener, spawn_local, yield_now};
use crate::net::connection::Handle;
use crate::net::handshake;

/// Pause after the system refused to accept a connection, for lack of descriptors or memory.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Most connections accepted before the tasks of earlier ones get a turn.
const ACCEPTED_PER_TURN: usize = 32;

/// Accepts connections until it is dropped; each gets a task of its own, in which `handle` handles its
/// frames.
pub async fn accept(listener: TcpListener, context: Rc<Context>, handle: Handle) {
    let mut refused = false;
    let mut accepted = 0;
    loop {
        match listener.accept().await {
            Ok(stream) => {
                refused = false;
                spawn_local(handshake::accept(context.clone(), stream, handle)).detach();
                accepted += 1;
                if accepted % ACCEPTED_PER_TURN == 0 {
                    yield_now().await;
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut refused, true) {
                    tracing::warn!(%error, "connections cannot be accepted");
                }
                GlommioRuntime::sleep(ACCEPT_RETRY_INTERVAL).await;
            }
        }
    }
}
