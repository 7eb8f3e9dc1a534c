//! The small interface behind which openraft stays.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use openraft::raft::ClientWriteResult;
use openraft::{Config, SnapshotPolicy};

use crate::env::{AsyncRuntime, Env};
use crate::error::Fatal;
use crate::raft::log_store::LogStore;
use crate::raft::network::Links;
use crate::raft::state_machine::StateMachine;
use crate::raft::type_config::{CallbackResponder, Commands, TypeConfig};
use crate::range::replica::{LEASE_MS, Replica};
use crate::types::{RangeId, ReplicaId};
use crate::wal::GroupLog;

/// What becomes of a proposal: its results from apply, or openraft's refusal.
pub type ProposalResult<E> = ClientWriteResult<TypeConfig<E>>;

type Raft<E> = openraft::Raft<TypeConfig<E>, StateMachine<E>>;

/// The Raft group of one replica. Clones are the same group.
pub struct RaftGroup<E: Env> {
    range: RangeId,
    replica: ReplicaId,
    raft: Raft<E>,
}

impl<E: Env> Clone for RaftGroup<E> {
    fn clone(&self) -> RaftGroup<E> {
        RaftGroup {
            range: self.range,
            replica: self.replica,
            raft: self.raft.clone(),
        }
    }
}

/// openraft's settings, the same for all groups.
fn config() -> Config {
    Config {
        cluster_name: "rangedb".to_owned(),
        heartbeat_interval: 100,
        election_timeout_min: LEASE_MS * 3 / 4,
        election_timeout_max: LEASE_MS,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: 0,
        enable_tick: false,
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(false),
        ..Config::default()
    }
}

impl<E: Env> RaftGroup<E> {
    /// Starts the group of a replica whose log and state were recovered.
    ///
    /// # Errors
    /// Log and state contradict each other.
    pub async fn start(
        replica: Rc<Replica<E>>,
        log: GroupLog<E>,
        transport: E::Transport,
    ) -> Result<RaftGroup<E>, Fatal> {
        let (range, id) = (replica.group.range, replica.group.replica);
        let failed = |message: String| Fatal::Raft { range, message };
        let config = config().validate().map_err(|e| failed(e.to_string()))?;
        let store = LogStore::new(log);
        let machine = StateMachine::new(replica);
        let links = Links::<E>::new(transport);
        let raft = Raft::<E>::new(id, Arc::new(config), links, store, machine)
            .await
            .map_err(|e| failed(e.to_string()))?;
        Ok(RaftGroup {
            range,
            replica: id,
            raft,
        })
    }

    fn failed(&self, error: impl std::fmt::Display) -> Fatal {
        Fatal::Raft {
            range: self.range,
            message: error.to_string(),
        }
    }

    /// Campaigns. A group of one voter leads as soon as its vote is durable.
    ///
    /// # Errors
    /// The group has stopped.
    pub async fn campaign(&self) -> Result<(), Fatal> {
        self.raft
            .trigger()
            .elect(true)
            .await
            .map_err(|e| self.failed(e))
    }

    /// Proposes one entry. `done` is called once, on this thread, when it was applied or refused;
    /// never if the group has stopped.
    ///
    /// # Errors
    /// The group has stopped.
    pub async fn propose(
        &self,
        commands: Bytes,
        done: impl FnOnce(ProposalResult<E>) + 'static,
    ) -> Result<(), Fatal> {
        let responder = CallbackResponder::new(done);
        self.raft
            .client_write_ff(Commands(commands), Some(responder))
            .await
            .map_err(|e| self.failed(e))
    }

    /// Tells openraft how far the tree is durable, upon which it purges the log.
    ///
    /// # Errors
    /// The group has stopped.
    pub async fn purge_durable(&self) -> Result<(), Fatal> {
        self.raft
            .trigger()
            .snapshot()
            .await
            .map_err(|e| self.failed(e))
    }

    /// Stops the group's tasks.
    pub async fn stop(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(range = %self.range, %error, "a Raft task had failed before the stop");
        }
    }

    /// Calls `deposed` whenever openraft says that another replica leads, until the group stops.
    pub fn watch_leader(&self, deposed: impl Fn() + 'static) {
        use openraft::async_runtime::watch::WatchReceiver;
        let mut metrics = self.raft.server_metrics();
        let me = self.replica;
        drop(E::Runtime::spawn(async move {
            let mut was_leader = false;
            while metrics.changed().await.is_ok() {
                let leads = metrics.borrow_watched().current_leader == Some(me);
                if was_leader && !leads {
                    deposed();
                }
                was_leader = leads;
            }
        }));
    }
}
