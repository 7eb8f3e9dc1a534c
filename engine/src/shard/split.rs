//! Splits of ranges that are led here, as the manager orders them. Lives on the shard's thread.

use std::rc::Rc;

use super::Inner;
use crate::cluster::ClusterResponse;
use crate::env::Env;
use crate::error::OrderError;
use crate::types::{RangeId, ReplicaId};

impl<E: Env> Inner<E> {
    /// Splits a range that is led here: the keys from `key` on become the range `child`. `replicas`
    /// names each replica of the range and the one of the child that is made beside it.
    #[expect(
        clippy::unused_async,
        unused_variables,
        reason = "the split itself is not built yet"
    )]
    pub(super) async fn split_range(
        self: &Rc<Self>,
        range: RangeId,
        version: u32,
        key: Vec<u8>,
        child: RangeId,
        replicas: Vec<(ReplicaId, ReplicaId)>,
    ) -> ClusterResponse {
        ClusterResponse::Refused(OrderError::busy("this shard cannot split ranges yet"))
    }
}
