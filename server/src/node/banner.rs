//! The first line that a node with a folder logs: what runs where, and with which settings.

use crate::config::Config;
use crate::config::raw::Key;
use crate::data_dir::DataDir;
use crate::env::root::Root;
use crate::node_settings::Settings;

/// Logs the banner.
pub(super) fn log(config: &Config, folder: &DataDir, settings: &Settings) {
    let identity = &folder.identity;
    let release = env!("CARGO_PKG_VERSION");
    let kernel = Root::of_machine().word("proc/sys/kernel/osrelease");
    let in_force = settings.shown().node_settings;
    let shown = |key: Key| {
        let mut all = in_force.iter();
        let found = all.find(|setting| setting.name == key.name());
        found.map_or("", |setting| setting.in_force.as_str())
    };
    tracing::info!(
        event = "node_starting",
        release,
        commit = env!("RANGEDB_BUILD_COMMIT"),
        folder = %folder.path().display(),
        node = identity.node,
        cluster = identity.cluster,
        shards = config.shards,
        leaving_shards = config.leaving_shards,
        processors = shown(Key::Cpus),
        memory = shown(Key::Memory),
        listen = config.listen.address,
        advertise = config.advertise,
        http = %config.http.address,
        settings = settings.changes(),
        kernel = kernel.unwrap_or_default(),
        "RangeDB {release} starts as node {} of cluster {}",
        identity.node,
        identity.cluster
    );
    if config.leaving_shards > 0 {
        let staying = config.shards - config.leaving_shards;
        tracing::info!(
            "the node gives up {} of its {} shards: what they hold moves to shards 0 to {}; they are \
             opened at each start until they hold nothing",
            config.leaving_shards,
            config.shards,
            staying - 1
        );
    }
}
