//! Get: answered at once, from where the value lies into the output.

use std::rc::Rc;

use rangedb_engine::error::Error;

use crate::handler::refusal::Refusal;
use crate::handler::{Call, Origin, elsewhere, reply};
use crate::shard::context::Context;

pub(super) fn handle<O: Origin>(
    context: &Rc<Context>,
    origin: &Rc<O>,
    call: &Call<'_>,
    key: &[u8],
) -> Result<(), Refusal> {
    context.check_unsent()?;
    let answered = context.shard.get(key, call.target, |found| {
        origin.send(|to| reply::value(context, &call.asked, found, to));
    });
    match answered {
        Ok(()) => Ok(()),
        // The shard is asked first: most keys are at home where they are asked for.
        Err(Error::Moved(None)) => elsewhere(origin, call, context.place(key)),
        Err(error) => Err(error.into()),
    }
}
