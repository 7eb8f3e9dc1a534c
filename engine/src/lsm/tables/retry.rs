//! Retries flushes and compactions that failed because the disk was full, or because the process
//! could not get file descriptors or memory, and removes the files that a failed one left behind.
//!
//! A compaction that fails for another reason, mostly because a block that it reads is damaged, changes
//! nothing and is tried again after a pause: see [`Retries`].

use std::fs;
use std::io::{self, Read};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::failure::failed;
use super::{AbstractTree, Shared, Table, TreeError};
use crate::disk_fault::Lack;

/// Pause before a flush or compaction that lacked something is retried.
const LACK_RETRY: Duration = Duration::from_millis(200);
/// Pause before a compaction that failed for another reason is tried again. It doubles with each failure.
const FAILED_RETRY: Duration = Duration::from_secs(1);
/// The longest such pause.
const FAILED_RETRY_MAX: Duration = Duration::from_mins(10);
/// File descriptors that a flush or a compaction may need at once. It does not begin without them,
/// because one that fails halfway leaves files behind.
const DESCRIPTORS: usize = 16;
/// The file whose first eight bytes name the version of the tree that the next open reads.
const CURRENT: &str = "current";

fn lack(error: &TreeError) -> Option<Lack> {
    match error {
        TreeError::Io(error) => Lack::of(error),
        _ => None,
    }
}

impl Shared {
    /// Removes the files of a failed write. `lsm-tree` keeps them until the store is opened again,
    /// so every retry would fill the disk further. Returns whether the tree on disk is the one in
    /// memory; if it is not, nothing is removed and this process cannot go on with the tree.
    /// Returns `None`, and removes nothing, while another write runs.
    fn remove_leftovers(&self) -> io::Result<Option<bool>> {
        let Ok(_alone) = self.writing.try_write() else {
            return Ok(None);
        };
        if !self.is_current()? {
            return Ok(Some(false));
        }
        let live: Vec<u64> = self
            .tree
            .current_version()
            .iter_tables()
            .map(Table::id)
            .collect();
        let files = fs::read_dir(self.options.folder.join("tables"));
        for file in files.into_iter().flatten().flatten() {
            let id = file.file_name().to_str().and_then(|name| name.parse().ok());
            if id.is_some_and(|id| !live.contains(&id))
                && let Err(error) = fs::remove_file(file.path())
            {
                tracing::warn!(%error, file = %file.path().display(), "an unfinished file remains");
            }
        }
        Ok(Some(true))
    }

    /// Repeats [`Shared::remove_leftovers`] until it gives an answer, or the store is closed. A
    /// retry before that could overwrite the version that is on disk by now.
    fn may_try_again(&self) -> bool {
        while !self.stop.load(Ordering::SeqCst) {
            std::thread::sleep(LACK_RETRY);
            if let Ok(Some(is_current)) = self.remove_leftovers() {
                return is_current;
            }
        }
        true
    }

    /// Whether the next open would read the version of the tree that this process uses. A write
    /// that failed late may have named the next version already, and a retry must not overwrite
    /// that one.
    fn is_current(&self) -> io::Result<bool> {
        let mut named = [0; 8];
        fs::File::open(self.options.folder.join(CURRENT))?.read_exact(&mut named)?;
        Ok(u64::from_le_bytes(named) == self.tree.current_version().id())
    }

    /// Whether the file descriptors for a flush or a compaction are available.
    fn has_descriptors(&self) -> io::Result<()> {
        let opened = (0..DESCRIPTORS).map(|_| fs::File::open(&self.options.folder));
        opened.collect::<io::Result<Vec<_>>>().map(drop)
    }

    /// Logs a lack once, when it begins.
    fn note(&self, action: &'static str, lack: Lack, error: &TreeError) {
        let flag = match lack {
            Lack::Room => &self.lacks.disk_full,
            Lack::Resources => &self.lacks.resources,
        };
        let is_known = lack == Lack::Room && self.lacks.room.load(Ordering::SeqCst);
        if flag.swap(true, Ordering::SeqCst) || is_known {
            return;
        }
        match lack {
            Lack::Room => tracing::error!(
                event = "disk_full",
                %error,
                "the disk of the tables is full, so that a {action} waits: writes are refused until there \
                 is room"
            ),
            Lack::Resources => tracing::error!(
                event = "resources_lacking",
                %error,
                "a {action} lacks file descriptors or memory: it is tried again until they are there"
            ),
        }
        self.tell();
    }

    /// Logs the end of a lack.
    fn note_end(&self) {
        if self.lacks.disk_full.swap(false, Ordering::SeqCst)
            && !self.lacks.room.load(Ordering::SeqCst)
        {
            self.log_room();
        }
        if self.lacks.resources.swap(false, Ordering::SeqCst) {
            tracing::info!(
                event = "resources_back",
                "the tables have what they lacked, and go on"
            );
        }
    }

    /// Runs `write` until it succeeds, and returns whether it did. Lacks are waited for; any other
    /// error is published for the shard and ends the attempts.
    pub(super) fn write(
        &self,
        action: &'static str,
        write: impl FnMut() -> Result<(), TreeError>,
    ) -> bool {
        self.try_write(action, write).unwrap_or_else(|error| {
            self.report(failed(&self.options.folder, action, &error));
            false
        })
    }

    /// Runs a compaction like [`Shared::write`], and returns whether it changed anything. After an error
    /// that passes as nothing has changed it is tried again later.
    ///
    /// # Errors
    /// The compaction failed and is to be tried again.
    pub(super) fn write_compacted(
        &self,
        mut compact: impl FnMut() -> Result<bool, TreeError>,
    ) -> Result<bool, TreeError> {
        let mut has_changed = false;
        let action = "compaction";
        let error = match self.try_write(action, || {
            has_changed = compact()?;
            Ok(())
        }) {
            Ok(done) => return Ok(done && has_changed),
            Err(error) => error,
        };
        if self.may_try_again() {
            return Err(error);
        }
        self.report(failed(&self.options.folder, action, &error));
        Ok(false)
    }

    /// Runs `write` until it succeeds, and returns whether it did: not if the store is closed. Lacks are
    /// waited for.
    ///
    /// # Errors
    /// Those of `write` that are no lack.
    fn try_write(
        &self,
        action: &'static str,
        mut write: impl FnMut() -> Result<(), TreeError>,
    ) -> Result<bool, TreeError> {
        while !self.stop.load(Ordering::SeqCst) {
            let done = self.has_descriptors().map_err(Into::into);
            let error = match done.and_then(|()| write()) {
                Ok(()) => {
                    self.note_end();
                    return Ok(true);
                }
                Err(error) => error,
            };
            let goes_on = lack(&error).is_some_and(|lack| {
                self.note(action, lack, &error);
                self.may_try_again()
            });
            if !goes_on {
                return Err(error);
            }
        }
        Ok(false)
    }
}

/// What the compactor has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compaction {
    /// The compactions that the leveled strategy chooses, until it chooses none.
    Levels,
    /// The same while nothing is flushed, when more is merged than otherwise.
    Idle,
    /// One compaction of all tables.
    All,
}

/// When a kind of compaction that failed is tried again.
struct Retry {
    at: Instant,
    pause: Duration,
}

/// The compactions that have failed and are tried again after pauses that grow. The kinds are apart: one of
/// all tables fails as long as any block is damaged, while those of the levels may still find tables that
/// have none.
#[derive(Default)]
pub(super) struct Retries {
    levels: Option<Retry>,
    all: Option<Retry>,
}

impl Retries {
    fn of(&mut self, what: Compaction) -> &mut Option<Retry> {
        match what {
            Compaction::Levels | Compaction::Idle => &mut self.levels,
            Compaction::All => &mut self.all,
        }
    }

    /// Whether a kind waits until it is tried again.
    pub(super) fn holds_back(&self, what: Compaction) -> bool {
        match what {
            Compaction::Levels | Compaction::Idle => self.levels.is_some(),
            Compaction::All => self.all.is_some(),
        }
    }

    /// The kind that is tried again next, and when.
    pub(super) fn next(&self) -> Option<(Instant, Compaction)> {
        let levels = self
            .levels
            .iter()
            .map(|retry| (retry.at, Compaction::Levels));
        let all = self.all.iter().map(|retry| (retry.at, Compaction::All));
        levels.chain(all).min_by_key(|(at, _)| *at)
    }

    /// Takes how a compaction has ended; gives the pause if it is tried again.
    pub(super) fn ended(&mut self, what: Compaction, has_failed: bool) -> Option<Duration> {
        let retry = self.of(what);
        let before = retry
            .take()
            .filter(|_| has_failed)
            .map(|retry| retry.pause * 2);
        let pause = has_failed.then(|| before.unwrap_or(FAILED_RETRY).min(FAILED_RETRY_MAX))?;
        *retry = Some(Retry {
            at: Instant::now() + pause,
            pause,
        });
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_that_fails_waits_for_longer_each_time_and_holds_up_no_other() {
        let mut retries = Retries::default();
        assert_eq!(retries.ended(Compaction::All, false), None);
        assert_eq!(retries.next(), None);
        let mut pause = FAILED_RETRY;
        for _ in 0..20 {
            assert_eq!(retries.ended(Compaction::All, true), Some(pause));
            pause = (pause * 2).min(FAILED_RETRY_MAX);
        }
        assert!(retries.holds_back(Compaction::All) && !retries.holds_back(Compaction::Levels));
        assert_eq!(retries.ended(Compaction::Levels, true), Some(FAILED_RETRY));
        let next = retries.next().map(|(_, what)| what);
        assert_eq!(next, Some(Compaction::Levels), "it is due first");
        assert_eq!(retries.ended(Compaction::Levels, false), None);
        assert!(retries.holds_back(Compaction::All) && !retries.holds_back(Compaction::Levels));
        assert_eq!(retries.ended(Compaction::All, false), None);
        assert_eq!(
            retries.ended(Compaction::All, true),
            Some(FAILED_RETRY),
            "anew"
        );
    }
}
