//! Whether the parts of a shard's folder belong together, and are all there.
//!
//! A shard has two folders, its log and its tables, and the node's folder has a file beside them
//! (`node.json`). Each can be lost alone: a volume that was not mounted, a folder that was emptied or
//! put back from an older copy. So each says something of the others, and a start compares:
//!
//! | where | what it says |
//! |---|---|
//! | the node ([`FolderMark`]) | the log's random id; the start at which the log was last opened |
//! | the log ([`LogMark`]) | its id; the start at which it was opened; how many flushes the tables have |
//! | the tables ([`TreeMark`]) | the log's id; their flushes; the log's last durable batch at the flush |
//!
//! Whatever is missing or older than another part knows is refused. Nothing begins anew but a folder
//! of which the node says that its log was never made.
//!
//! At the first start the order is: the node has chosen the id durably; the log is made and says whose
//! it is; the tables say so, too; the first ranges are made; the node notes that the log was made
//! (outside of this crate); the shard serves. A crash between any two of them leaves what the next
//! start goes on from. A folder of a version that knew none of this gets its marks in the same order.

use crate::env::Env;
use crate::error::Fatal;
use crate::lsm::keys;
use crate::mutant::{self, Mutant};
use crate::shard::ShardOptions;
use crate::shard::store::Store;
use crate::types::ReplicaId;
use crate::wal::{Group, LogId, LogMark, Recovered, Wal};

/// What the node knows of a shard's folder, from outside of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FolderMark {
    /// The random id of the shard's log.
    pub log: u128,
    /// Whether the log was ever opened.
    pub opened: Opened,
    /// Which start of the node this is.
    pub start: u64,
}

/// Whether a shard's log was ever opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// It may be missing, or half made.
    Never,
    /// By a version that left no marks.
    Unmarked,
    /// Last at this start of the node.
    At(u64),
}

/// A part of a shard's folder is missing, or is not the one that belongs there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FolderFault {
    /// The log's id is another.
    #[error(
        "the log in wal/ is not this shard's own: it belongs to another shard or another data folder"
    )]
    LogOfAnother,
    /// The log is from an earlier start than the node remembers.
    #[error(
        "the log in wal/ is older than node.json: it was last written at start {found} of this node, \
         and start {known} has written to it since"
    )]
    LogBeforeStart {
        /// The start of which the log knows.
        found: u64,
        /// The start that is known to have opened it.
        known: u64,
    },
    /// The log ends before something that the tables have.
    #[error(
        "the log in wal/ is older than the tables, or its end is missing: its last batch is {found}, \
         and the tables were written when batch {known} was durable"
    )]
    LogBeforeTables {
        /// The log's last batch.
        found: u64,
        /// The one that was durable.
        known: u64,
    },
    /// The log does not know of a range that the folder was made with.
    #[error("the log in wal/ does not know of range {0}, with which this folder was made")]
    RangeUnknown(crate::types::RangeId),
    /// The log knows of a later start than the node.
    #[error(
        "node.json is older than the log in wal/: it counts start {found}, and the log has seen \
         start {known}"
    )]
    NodeBeforeLog {
        /// The start that the node counts.
        found: u64,
        /// The start of which the log knows.
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
    /// The tables lack flushes of which the log knows.
    #[error(
        "the tables in tables/ are older than the log: they have taken {found} flushes, and the log \
         knows of {known}"
    )]
    TablesBeforeLog {
        /// Flushes that they have.
        found: u64,
        /// Flushes that they should have.
        known: u64,
    },
    /// Entries between the tables and the log are gone.
    #[error(
        "the tables in tables/ are older than the log: they have range {} up to entry {applied}, and \
         the log begins after entry {purged}", .group.range
    )]
    EntriesGone {
        /// The replica.
        group: Group,
        /// The last entry in the tables.
        applied: u64,
        /// The last entry that the log no longer has.
        purged: u64,
    },
    /// The tables hold a replica of which the log knows nothing.
    #[error(
        "the tables in tables/ hold replica {0}, of which the log in wal/ knows nothing: one of the \
         two was lost or belongs to another folder"
    )]
    ReplicaUnknown(ReplicaId),
}

/// What the tables say of the log that they belong to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TreeMark {
    /// The log's id.
    pub log: u128,
    /// Flushes of the tree, this one included.
    pub flushes: u64,
    /// The log's last durable batch when it was frozen.
    pub batch: u64,
}

/// Version of the row.
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

    /// Reads a row's value; `None` if it is none of this version.
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

/// Whether a start without a log means that it was lost.
pub(super) fn must_have_log(folder: &FolderMark) -> bool {
    !is_new(folder)
}

/// Whether nothing was ever acknowledged from this folder.
pub(super) fn is_new(folder: &FolderMark) -> bool {
    folder.opened == Opened::Never || mutant::is(Mutant::FreshLogOverOldTables)
}

/// Compares node, log and tables, and has log and tables say that they belong together.
///
/// # Errors
/// They do not, or one of them cannot be read or written.
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
        // A log that a crash left before it was marked has nothing in it.
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

/// Log and tables of a version that left no marks can be told apart by their replicas alone.
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

/// Whether the log has every entry that the tables lack.
///
/// # Errors
/// It does not: the tables are older.
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
