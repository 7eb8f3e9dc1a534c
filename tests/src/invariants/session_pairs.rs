//! Each session pair is applied once: a write has one version, however often it is retried and
//! wherever its entries end up.

use std::collections::BTreeMap;

use rangedb_engine::range::apply::Applied;
use rangedb_engine::range::command::ArchivedAction;
use rangedb_engine::types::{ClientId, Timestamp};
use rangedb_engine::wal::{Group, LogEntry};

use super::commands::check_each;

/// The version of each applied session pair.
#[derive(Default)]
pub struct Pairs(BTreeMap<(ClientId, u64), Timestamp>);

impl Pairs {
    /// Checks an entry that a replica has applied.
    ///
    /// # Errors
    /// A session pair was applied twice.
    pub fn check(
        &mut self,
        group: Group,
        entry: &LogEntry,
        results: &[Applied],
    ) -> Result<(), String> {
        check_each(entry, results, |command, result| {
            let ArchivedAction::Write { pair, .. } = &command.action else {
                return Ok(());
            };
            let pair = pair.pair();
            let Applied::Outcome(outcome) = result else {
                return Ok(());
            };
            let Some(version) = outcome.version() else {
                return Ok(());
            };
            let key = (pair.client, pair.sequence);
            let first = *self.0.entry(key).or_insert(version);
            if first != version {
                return Err(format!(
                    "range {}: write {} of client {} is applied at {first} and at {version}",
                    group.range, pair.sequence, pair.client.0
                ));
            }
            Ok(())
        })
    }
}
