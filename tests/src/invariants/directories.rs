//! After all faults each gateway knows where the ranges are: its directory names the epoch of each of
//! the users' ranges, and its leader.

use rangedb_engine::gateway::Gateway;

use crate::sim::cluster::Look;
use crate::sim::executor::{self, Host};
use crate::sim::sim_env::SimEnv;

/// The first range that a gateway does not know as it is; `None` if there is none.
pub fn missing(looks: &[Look], gateways: &[(Host, Gateway<SimEnv>)]) -> Option<String> {
    let led = looks.iter().map(|look| &look.status);
    let led: Vec<_> = led.filter(|range| range.leads && !range.system).collect();
    gateways.iter().find_map(|(host, gateway)| {
        let directory = executor::current().on_host(*host, || gateway.directory());
        led.iter().find_map(|range| {
            let route = &range.route;
            let known = directory.routes();
            let known = known.iter().find(|known| known.range == route.range);
            let is_known = known
                .is_some_and(|known| known.epoch == route.epoch && known.leader == route.leader);
            let here = gateway.shard().location();
            (!is_known).then(|| format!("shard {here} knows {known:?}, and there is {route:?}"))
        })
    })
}
