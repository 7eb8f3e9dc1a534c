//! Each request of a session is applied once: a write has one version, however often it is retried and
//! wherever its entries end up.

use std::collections::BTreeMap;

use rangedb_engine::range::apply::Applied;
use rangedb_engine::range::command::ArchivedAction;
use rangedb_engine::types::{ClientId, Timestamp};
use rangedb_engine::wal::{Group, LogEntry};

use super::commands::check_each;

/// The version of each applied request of a session.
#[derive(Default)]
pub struct Requests(BTreeMap<(ClientId, u64), Timestamp>);

impl Requests {
    /// Checks an entry that a replica has applied.
    ///
    /// # Errors
    /// A request of a session was applied twice.
    pub fn check(
        &mut self,
        group: Group,
        entry: &LogEntry,
        results: &[Applied],
    ) -> Result<(), String> {
        check_each(entry, results, |command, result| {
            let ArchivedAction::Write { request_id, .. } = &command.action else {
                return Ok(());
            };
            let request_id = request_id.to_native();
            let Applied::Outcome(outcome) = result else {
                return Ok(());
            };
            let Some(version) = outcome.version() else {
                return Ok(());
            };
            let key = (request_id.client, request_id.sequence);
            let first = *self.0.entry(key).or_insert(version);
            if first != version {
                return Err(format!(
                    "range {}: write {} of client {} is applied at {first} and at {version}",
                    group.range, request_id.sequence, request_id.client.0
                ));
            }
            Ok(())
        })
    }
}
