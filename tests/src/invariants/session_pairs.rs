//! Each session pair is applied once: a write has one version, however often it is retried and
//! wherever its entries end up.

use std::collections::BTreeMap;

use rangedb_engine::range::apply::Applied;
use rangedb_engine::range::command::{self, ArchivedAction};
use rangedb_engine::types::{ClientId, Timestamp};
use rangedb_engine::wal::{Group, LogEntry, Payload};

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
        let Payload::Commands(bytes) = &entry.payload else {
            return Ok(());
        };
        let current = command::current(bytes).map_err(|error| error.to_string())?;
        let archived = command::access(&current).map_err(|error| error.to_string())?;
        for (command, result) in archived.commands.iter().zip(results) {
            let ArchivedAction::Write { pair, .. } = &command.action else {
                continue;
            };
            let pair = pair.pair();
            let Applied::Outcome(outcome) = result else {
                continue;
            };
            let Some(version) = outcome.version() else {
                continue;
            };
            let key = (pair.client, pair.sequence);
            let first = *self.0.entry(key).or_insert(version);
            if first != version {
                return Err(format!(
                    "range {}: write {} of client {} is applied at {first} and at {version}",
                    group.range, pair.sequence, pair.client.0
                ));
            }
        }
        Ok(())
    }
}
