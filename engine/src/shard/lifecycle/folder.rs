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
use crate::error::{Fatal, FolderFault};
use crate::lsm::keys;
use crate::mutant::{self, Mutant};
use crate::shard::ShardOptions;
use crate::tree::{Store, TreeMark};
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

/// Whether a missing log means that it was lost.
pub(super) fn must_have_log(folder: &FolderMark) -> bool {
    !is_new(folder)
}

/// Whether nothing was ever acknowledged from this folder.
pub(in crate::shard) fn is_new(folder: &FolderMark) -> bool {
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
    // The log names only the last removed replica of a range, so a lower id may be one before it.
    let highest = known.iter().map(|group| group.replica).max();
    for replica in store.replicas_with_rows()? {
        if Some(replica) > highest {
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
