//! Accepting connections on one shard's socket.

use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::AsyncRuntime;

use crate::env::GlommioRuntime;
use crate::env::reactor::{TcpListener, spawn_local};
use crate::net::preamble::{self, GREETINGS_MAX};
use crate::shard::context::Context;

/// How long nothing is accepted after the system refused: it lacks descriptors or memory.
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts until it is dropped; each connection is a task of its own.
pub async fn accept(listener: TcpListener, context: Rc<Context>) {
    let mut refused = false;
    loop {
        while context.greetings.get() >= GREETINGS_MAX {
            GlommioRuntime::sleep(PAUSE).await;
        }
        match listener.accept().await {
            Ok(stream) => {
                refused = false;
                spawn_local(preamble::greet(context.clone(), stream)).detach();
            }
            Err(error) => {
                if !std::mem::replace(&mut refused, true) {
                    tracing::warn!(%error, "connections cannot be accepted");
                }
                GlommioRuntime::sleep(PAUSE).await;
            }
        }
    }
}
