//! Rewrites of replicas whose rows lie under too many data ids to be merged: all are copied under one
//! (`range/storage/rewrite.rs`). A task of its own copies a replica, in turns, while it works on. Lives
//! on the shard's thread.

use std::rc::Rc;

use crate::env::{AsyncRuntime, Env, yield_now};
use crate::error::Fatal;
use crate::lsm::keys;
use crate::raft::SnapshotReader;
use crate::range::replica::Replica;
use crate::range::storage::snapshot_export::Export;
use crate::shard::{ShardInner, gc};
use crate::types::{Blob, DataId, Timestamp};
use crate::wal::WalError;

impl<E: Env> ShardInner<E> {
    /// Has a replica write its rows anew under one data id, beside everything else, unless it does so already.
    pub(in crate::shard) fn rewrite(self: &Rc<Self>, replica: Rc<Replica<E>>) {
        if !replica.claim_rewrite() {
            return;
        }
        let inner = self.clone();
        drop(E::Runtime::spawn(async move {
            let range = replica.group.range;
            let parts = replica.parts_count();
            match inner.write_anew(&replica).await {
                Ok(true) => tracing::info!(
                    "the replica of range {range} on shard {} had its rows in {parts} parts, and has written \
                     them anew as one",
                    inner.location
                ),
                Ok(false) => tracing::info!(
                    %range,
                    "the rows of a replica were not written anew as one part: the range was changed, has too \
                     many writes now, or the disk is full"
                ),
                // The shard is being closed.
                Err(Fatal::Wal(WalError::Closed)) => {}
                Err(fatal) => inner.store.fail(fatal),
            }
            replica.unclaim_rewrite();
            inner.store.set_gc(gc::rules(&inner));
        }));
    }

    /// Writes the rows of a replica anew; `false` if that was given up.
    async fn write_anew(self: &Rc<Self>, replica: &Rc<Replica<E>>) -> Result<bool, Fatal> {
        let data_id = self.new_data_id().await?;
        let mut export = replica.begin_rewrite(data_id)?;
        // Before the first row: a flush or compaction must not take its rows for ownerless.
        self.store.set_gc(gc::rules(self));
        if !self.copy_rows(replica, data_id, &mut export).await? {
            return Ok(false);
        }
        drop(export);
        while let Some((key, version, value)) = replica.next_new_row() {
            if !self
                .copy_user_row(replica, data_id, (key, version, value))
                .await?
            {
                return Ok(false);
            }
        }
        // From the last look for a new row to here there is no await.
        if replica.rewrites_to() != Some(data_id) {
            return Ok(false);
        }
        replica.end_rewrite(data_id);
        Ok(true)
    }

    /// Copies the rows that there were when the rewrite began.
    async fn copy_rows(
        &self,
        replica: &Replica<E>,
        data_id: DataId,
        export: &mut Export<E>,
    ) -> Result<bool, Fatal> {
        let mut key = Vec::new();
        loop {
            let rows = match export.next_part().await {
                Ok((rows, _)) => rows,
                Err(why) => {
                    tracing::debug!(range = %replica.group.range, %why, "a rewrite has ended");
                    return Ok(false);
                }
            };
            if rows.is_empty() {
                return Ok(true);
            }
            for row in rows {
                let len = row.key.len() + row.value.as_ref().map_or(0, bytes::Bytes::len);
                if !self.has_room(replica, data_id, len).await? {
                    return Ok(false);
                }
                keys::with_data_id(data_id, &row.key, &mut key);
                self.store
                    .insert_row(&key, row.version, row.value.as_deref());
            }
            yield_now().await;
        }
    }

    /// Copies a row that was written since.
    async fn copy_user_row(
        &self,
        replica: &Replica<E>,
        data_id: DataId,
        (key, version, value): (Blob, Timestamp, Option<Blob>),
    ) -> Result<bool, Fatal> {
        let len = key.len() + value.as_ref().map_or(0, |value| value.len());
        if !self.has_room(replica, data_id, len).await? {
            return Ok(false);
        }
        self.store.insert(data_id, &key, version, value.as_deref());
        Ok(true)
    }

    /// Waits until there is room for a row; `false` if the rewrite is to be given up.
    async fn has_room(
        &self,
        replica: &Replica<E>,
        data_id: DataId,
        len: usize,
    ) -> Result<bool, Fatal> {
        if self.store.disk_full() {
            return Ok(false);
        }
        self.store.make_room(1, len).await?;
        Ok(replica.rewrites_to() == Some(data_id) && !self.closing.get())
    }
}
