//! Directory: where the ranges of the users' key space are.

use std::rc::Rc;

use rangedb_protocol::Reply;

use crate::handler::reply::Head;
use crate::handler::{Asked, reply};
use crate::net::connection::Connection;
use crate::shard::context::Context;

pub(super) fn handle(context: &Rc<Context>, connection: &Rc<Connection>, asked: Asked) {
    let directory = context.gateway.directory();
    let routes = directory.routes().iter();
    let routes = routes.map(|route| reply::route(context, route)).collect();
    connection
        .send(|to| reply::write(context, Head::of(asked.request), &Reply::Routes(routes), to));
}
