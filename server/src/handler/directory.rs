//! Directory: where the ranges of the users' key space are.

use std::rc::Rc;

use rangedb_protocol::Reply;

use crate::handler::refusal::Refusal;
use crate::handler::{Call, Origin, reply};
use crate::shard::context::Context;

pub(super) fn handle<O: Origin>(
    context: &Rc<Context>,
    origin: &Rc<O>,
    call: &Call<'_>,
) -> Result<(), Refusal> {
    context.check_unsent()?;
    let directory = context.directory();
    let routes = directory.routes().iter();
    let routes = routes.map(|route| reply::route(context, route)).collect();
    origin.send(|to| reply::write(context, call.asked.request, &Reply::Routes(routes), to));
    Ok(())
}
