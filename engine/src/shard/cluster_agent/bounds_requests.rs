//! Requests about the bounds of ranges, to the shards that lead them or have replicas: splits and merges, and
//! the keys at which a range is best split. Lives on the shard's thread.

use std::rc::Rc;

use crate::cluster::{ClusterRequest, ClusterResponse};
use crate::env::Env;
use crate::error::Fatal;
use crate::shard::ShardInner;

impl<E: Env> ShardInner<E> {
    /// Answers a request about the bounds of a range. All others are for the manager alone.
    pub(super) async fn take_bounds_request(
        self: &Rc<Self>,
        request: ClusterRequest,
    ) -> Result<ClusterResponse, Fatal> {
        Ok(match request {
            ClusterRequest::Split {
                range,
                version,
                key,
                child,
                replicas,
                reason,
            } => {
                let child = (child, replicas);
                self.split_range(range, version, key, child, reason).await
            }
            ClusterRequest::SplitKeys {
                range,
                version,
                parts,
            } => self.split_keys(range, version, parts),
            ClusterRequest::LoadKeys { range, version } => self.load_keys(range, version),
            ClusterRequest::HotKeys { range, top } => self.hot_keys(range, top),
            ClusterRequest::Merge {
                range,
                version,
                right,
                right_version,
            } => {
                let right = (right, right_version);
                self.merge_range(range, version, right).await
            }
            ClusterRequest::Freeze {
                range,
                epoch,
                merge,
            } => self.freeze_range(range, epoch, merge).await,
            ClusterRequest::PrepareMerge { left, right } => self.prepare_merge(left, right),
            ClusterRequest::Frozen { range, merge } => self.frozen(range, merge).await?,
            ClusterRequest::CancelMerge { merge, border } => {
                self.cancel_merge(merge, &border).await
            }
            ClusterRequest::Unfreeze { range, merge } => self.unfreeze(range, merge).await,
            _ if !self.manages() => self.not_here(),
            request => self.answer_as_manager(request).await,
        })
    }
}
