//! Checks that the parts of a shard's folder belong together, and that none is missing.
//!
//! A shard has two folders, its log and its tables, and the node's folder has a file beside them
//! (`node.json`). Each can be lost alone: a volume that was not mounted, a folder that was emptied
//! or restored from an older copy. So each part records something of the others, and a start
//! compares:
//!
//! | part | what it records |
//! |---|---|
//! | the node ([`FolderMark`]) | the log's random id; the start at which the log was last opened |
//! | the log ([`LogMark`]) | its id; the start at which it was opened; how many flushes the tables have |
//! | the tables ([`TreeMark`]) | the log's id; their flushes; the log's last durable batch at the flush |
//!
//! A part that is missing, or older than another part knows, is refused. The only folder that
//! begins anew is one of which the node records that its log was never made.
//!
//! The order at the first start: the node has chosen the id durably; the log is made, and records
//! its id; the tables record it, too; the first ranges are made; the node records that the log was
//! made (outside of this crate); the shard serves. After a crash between any two of these the next
//! start goes on from there. A folder of a version without these records gets them in the same
//! order.

use crate::env::Env;
use crate::error::Fatal;
use crate::lsm::keys;
use crate::mutant::{self, Mutant};
use crate::shard::ShardOptions;
use crate::shard::store::Store;
use crate::types::ReplicaId;
use crate::wal::{Group, LogId, LogMark, Recovered, Wal};

/// What the node records of a shard's folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FolderMark {
    /// The random id of the shard's log.
    pub log: u128,
    /// Whether the log was ever opened, and when.
    pub opened: Opened,
    /// The number of this start of the node.
    pub start: u64,
}

/// Whether a shard's log was ever opened, as far as the node knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Never: the log may be missing or half made.
    Never,
    /// Yes, by a version that recorded nothing.
    Unmarked,
    /// Yes, last at this start of the node.
    At(u64),
}

/// Why the parts of a shard's folder do not belong together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FolderFault {
    /// The log has another id.
    #[error(
        "the log in wal/ is not this shard's own: it belongs to another shard or another data folder"
    )]
    LogOfAnother,
    /// The log was last opened at an earlier start than the node records.
    #[error(
        "the log in wal/ is older than node.json: it was last written at start {found} of this node, \
         and start {known} has written to it since"
    )]
    LogBeforeStart {
        /// The start that the log records.
        found: u64,
        /// The start that the node records.
        known: u64,
    },
    /// The log ends before a batch that the tables have seen.
    #[error(
        "the log in wal/ is older than the tables, or its end is missing: its last batch is {found}, \
         and the tables were written when batch {known} was durable"
    )]
    LogBeforeTables {
        /// The last batch of the log.
        found: u64,
        /// The batch that the tables have seen.
        known: u64,
    },
    /// The log lacks a range with which the folder was made.
    #[error("the log in wal/ does not know of range {0}, with which this folder was made")]
    RangeUnknown(crate::types::RangeId),
    /// The log was opened at a later start than the node counts.
    #[error(
        "node.json is older than the log in wal/: it counts start {found}, and the log has seen \
         start {known}"
    )]
    NodeBeforeLog {
        /// The start that the node counts.
        found: u64,
        /// The start that the log records.
        known: u64,
    },
    /// There are no tables, or they were never this shard's.
    #[error(
        "the tables in tables/ are missing: the folder has none of the rows that this node wrote"
    )]
    TablesGone,
    /// The tables name another log.
    #[error(
        "the tables in tables/ are not this shard's own: they belong to another shard or another \
         data folder"
    )]
    TablesOfAnother,
    /// The tables lack flushes that the log records.
    #[error(
        "the tables in tables/ are older than the log: they have taken {found} flushes, and the log \
         knows of {known}"
    )]
    TablesBeforeLog {
        /// Flushes that the tables have.
        found: u64,
        /// Flushes that the log records.
        known: u64,
    },
    /// Entries between the tables and the log are missing.
    #[error(
        "the tables in tables/ are older than the log: they have range {} up to entry {applied}, and \
         the log begins after entry {purged}", .group.range
    )]
    EntriesGone {
        /// The replica.
        group: Group,
        /// The last entry that the tables have.
        applied: u64,
        /// The last entry that is purged from the log.
        purged: u64,
    },
    /// The tables have rows of a replica that the log does not know.
    #[error(
        "the tables in tables/ hold replica {0}, of which the log in wal/ knows nothing: one of the \
         two was lost or belongs to another folder"
    )]
    ReplicaUnknown(ReplicaId),
}

/// What the tables record of the log to which they belong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TreeMark {
    /// The log's id.
    pub log: u128,
    /// Flushes of the tree, with the one that writes this.
    pub flushes: u64,
    /// The log's last durable batch when the memtable froze.
    pub batch: u64,
}

/// The version of the row.
const VERSION: u8 = 1;

impl TreeMark {
    /// The row's value.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&self.log.to_le_bytes());
        bytes.extend_from_slice(&self.flushes.to_le_bytes());
        bytes.extend_from_slice(&self.batch.to_le_bytes());
        bytes
    }

    /// Reads a row's value; `None` if it is not one of this version.
    pub fn decode(bytes: &[u8]) -> Option<TreeMark> {
        let rest = bytes.strip_prefix(&[VERSION])?;
        let (log, rest) = rest.split_first_chunk()?;
        let (flushes, rest) = rest.split_first_chunk()?;
        Some(TreeMark {
            log: u128::from_le_bytes(*log),
            flushes: u64::from_le_bytes(*flushes),
            batch: u64::from_le_bytes(rest.try_into().ok()?),
        })
    }
}

/// Whether a missing log means that it was lost.
pub(super) fn must_have_log(folder: &FolderMark) -> bool {
    !is_new(folder)
}

/// Whether nothing was ever acknowledged from this folder.
pub(super) fn is_new(folder: &FolderMark) -> bool {
    folder.opened == Opened::Never || mutant::is(Mutant::FreshLogOverOldTables)
}

/// Compares node, log and tables, and lets log and tables record that they belong together.
///
/// # Errors
/// They do not belong together, or one of them cannot be read or written.
pub(super) async fn check_and_mark<E: Env>(
    store: &Store<E>,
    wal: &Wal<E>,
    recovered: &Recovered<E>,
    options: &ShardOptions,
) -> Result<(), Fatal> {
    let folder = &options.folder;
    let found = store.newest_row(keys::TREE_MARK, |row| row.map(TreeMark::decode))?;
    let found = match found {
        Some(Some(mark)) => Some(mark),
        Some(None) => return Err(FolderFault::TablesOfAnother.into()),
        None => None,
    };
    if !mutant::is(Mutant::FreshLogOverOldTables) {
        check_log(folder, recovered)?;
        check_tables(folder, recovered, found)?;
        check_replicas(store, recovered, options)?;
    }
    let flushes = found.map_or(0, |mark| mark.flushes);
    wal.mark(LogMark {
        log: folder.log,
        start: folder.start,
        flushes,
    })
    .await?;
    store.belongs_to(folder.log, flushes);
    if found.is_none() {
        store.flush().await?;
    }
    Ok(())
}

fn check_log<E: Env>(folder: &FolderMark, recovered: &Recovered<E>) -> Result<(), FolderFault> {
    let Some(mark) = recovered.mark else {
        // A log that a crash left before it recorded its id is empty.
        let is_empty = recovered.replicas.is_empty() && recovered.removed.is_empty();
        return match folder.opened {
            Opened::Unmarked => Ok(()),
            Opened::Never if is_empty => Ok(()),
            Opened::Never | Opened::At(_) => Err(FolderFault::LogOfAnother),
        };
    };
    if mark.log != folder.log {
        return Err(FolderFault::LogOfAnother);
    }
    if mark.start > folder.start {
        return Err(FolderFault::NodeBeforeLog {
            found: folder.start,
            known: mark.start,
        });
    }
    match folder.opened {
        Opened::At(known) if mark.start < known => Err(FolderFault::LogBeforeStart {
            found: mark.start,
            known,
        }),
        _ => Ok(()),
    }
}

fn check_tables<E: Env>(
    folder: &FolderMark,
    recovered: &Recovered<E>,
    found: Option<TreeMark>,
) -> Result<(), FolderFault> {
    let known = recovered.mark.map_or(0, |mark| mark.flushes);
    let Some(found) = found else {
        let may_be_unmarked = known == 0 && !matches!(folder.opened, Opened::At(_));
        return match may_be_unmarked {
            true => Ok(()),
            false => Err(FolderFault::TablesGone),
        };
    };
    if found.log != folder.log {
        return Err(FolderFault::TablesOfAnother);
    }
    if found.flushes < known {
        let found = found.flushes;
        return Err(FolderFault::TablesBeforeLog { found, known });
    }
    if found.batch > recovered.last_batch {
        return Err(FolderFault::LogBeforeTables {
            found: recovered.last_batch,
            known: found.batch,
        });
    }
    Ok(())
}

/// Compares the replicas in log and tables. For a version that recorded nothing else, only they
/// tell.
fn check_replicas<E: Env>(
    store: &Store<E>,
    recovered: &Recovered<E>,
    options: &ShardOptions,
) -> Result<(), Fatal> {
    let created = recovered.replicas.iter().map(|(created, _)| created.group);
    let known: Vec<Group> = created.chain(recovered.removed.iter().copied()).collect();
    for replica in store.replicas_with_rows()? {
        if !known.iter().any(|group| group.replica == replica) {
            return Err(FolderFault::ReplicaUnknown(replica).into());
        }
    }
    if options.folder.opened == Opened::Unmarked {
        for initial in &options.initial {
            if !known.iter().any(|group| group.range == initial.range) {
                return Err(FolderFault::RangeUnknown(initial.range).into());
            }
        }
    }
    Ok(())
}

/// Checks that the log has every entry that the tables lack.
///
/// # Errors
/// It has not: the tables are older.
pub(super) fn check_replica(
    group: Group,
    purged: Option<LogId>,
    applied: Option<LogId>,
) -> Result<(), FolderFault> {
    let purged = purged.map_or(0, |id| id.index);
    let applied = applied.map_or(0, |id| id.index);
    if purged > applied {
        return Err(FolderFault::EntriesGone {
            group,
            applied,
            purged,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_mark_is_read_back_and_a_part_of_it_is_not() {
        let mark = TreeMark {
            log: u128::MAX - 5,
            flushes: 7,
            batch: 9,
        };
        let bytes = mark.encode();
        assert_eq!(TreeMark::decode(&bytes), Some(mark));
        for len in 0..bytes.len() {
            assert_eq!(TreeMark::decode(&bytes[..len]), None, "{len}");
        }
    }
}
