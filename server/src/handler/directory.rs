//! Directory: where the ranges of the users' key space are.

use std::rc::Rc;

use rangedb_protocol::Reply;

use crate::context::Context;
use crate::net::connection::Connection;
use crate::net::reply::{self, Head};
use crate::operation::PendingRequest;

pub(super) fn handle(context: &Rc<Context>, connection: &Rc<Connection>, pending: PendingRequest) {
    let directory = context.gateway.directory();
    let routes = directory.routes().iter();
    let routes = routes.map(|route| reply::route(context, route)).collect();
    connection.send(|to| {
        reply::write(
            context,
            Head::of(pending.request),
            &Reply::Routes(routes),
            to,
        )
    });
}
