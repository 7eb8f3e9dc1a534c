//! A write whose sender names the range and version that it believes in is applied in no other.

use std::collections::{BTreeMap, BTreeSet};

use rangedb_engine::range::apply::Applied;
use rangedb_engine::range::command::ArchivedAction;
use rangedb_engine::range::state::RangeState;
use rangedb_engine::request::{RequestId, Target};
use rangedb_engine::types::{ClientId, RangeId};
use rangedb_engine::wal::{Group, LogEntry};

use super::commands::{check_each, is_applied_now};

/// What the tries of one write have named; `None` once a try has named nothing.
type Named = Option<BTreeSet<(RangeId, u32)>>;

/// What the tries of each write have named.
#[derive(Default)]
pub struct Targets(BTreeMap<(ClientId, u64), Named>);

impl Targets {
    /// Notes a try of a write.
    pub fn asked(&mut self, session: &RequestId, target: Option<Target>) {
        let name = (session.client, session.sequence);
        let named = self.0.entry(name).or_insert_with(|| Some(BTreeSet::new()));
        match (target, &mut *named) {
            (Some(target), Some(all)) => drop(all.insert((target.range, target.epoch.version))),
            (Some(_), None) => {}
            (None, named) => *named = None,
        }
    }

    /// Checks an entry that a replica has applied.
    ///
    /// # Errors
    /// A write was applied that names another range or version.
    pub fn check(
        &self,
        group: Group,
        entry: &LogEntry,
        results: &[Applied],
        state: &RangeState,
    ) -> Result<(), String> {
        check_each(entry, results, |command, result| {
            let ArchivedAction::Write { request_id, .. } = &command.action else {
                return Ok(());
            };
            let request_id = request_id.to_native();
            let Some(Some(named)) = self.0.get(&(request_id.client, request_id.sequence)) else {
                return Ok(());
            };
            let version = state.descriptor.epoch.version;
            if is_applied_now(command, result) && !named.contains(&(group.range, version)) {
                return Err(format!(
                    "range {}: write {} of client {} is applied in version {version}, and names {named:?}",
                    group.range, request_id.sequence, request_id.client.0
                ));
            }
            Ok(())
        })
    }
}
