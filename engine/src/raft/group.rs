//! The small interface behind which openraft stays.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::alias::{SnapshotMetaOf, SnapshotOf, WatchReceiverOf};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::metrics::RaftMetrics;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, ClientWriteResult, ReadPolicy,
    TransferLeaderRequest, VoteRequest,
};
use openraft::{Config, SnapshotPolicy};

use crate::env::{AsyncRuntime, Env, Instant, Now};
use crate::error::Fatal;
use crate::raft::convert;
use crate::raft::log_store::LogStore;
use crate::raft::message::{Answer, Candidacy, Question};
use crate::raft::network::Links;
use crate::raft::state_machine::{SnapshotHandle, StateMachine, stored_membership};
use crate::raft::type_config::{CallbackResponder, Commands, TypeConfig};
use crate::range::replica::{LEASE_MS, Replica};
use crate::range::state::RangeState;
use crate::types::{DataId, RangeId, ReplicaId};
use crate::wal::{GroupLog, Vote};

/// What becomes of a proposal: its results from apply, or openraft's refusal.
pub type ProposalResult<E> = ClientWriteResult<TypeConfig<E>>;

type Raft<E> = openraft::Raft<TypeConfig<E>, StateMachine<E>>;

/// A part of a snapshot may take so long.
const SNAPSHOT_PART_TIMEOUT_MS: u64 = 10_000;
/// How far apart two clocks may run over one lease, and then some: a leader's lease ends earlier
/// by this, and a restarted replica's silence lasts longer by it.
const DRIFT_MARGIN: Duration = Duration::from_millis(LEASE_MS / 7);

/// The Raft group of one replica. Clones are the same group.
pub struct RaftGroup<E: Env> {
    range: RangeId,
    replica: ReplicaId,
    raft: Raft<E>,
    is_alone: bool,
    metrics: WatchReceiverOf<TypeConfig<E>, RaftMetrics<TypeConfig<E>>>,
    /// Until then it neither votes nor campaigns: openraft forgets at a restart whom it had
    /// promised a lease.
    silent_until: Rc<Cell<Option<Now<E>>>>,
}

impl<E: Env> Clone for RaftGroup<E> {
    fn clone(&self) -> RaftGroup<E> {
        RaftGroup {
            range: self.range,
            replica: self.replica,
            raft: self.raft.clone(),
            is_alone: self.is_alone,
            metrics: self.metrics.clone(),
            silent_until: self.silent_until.clone(),
        }
    }
}

/// openraft's settings.
fn config(entries_kept: u64) -> Config {
    Config {
        cluster_name: "rangedb".to_owned(),
        heartbeat_interval: 100,
        election_timeout_min: LEASE_MS * 3 / 4,
        election_timeout_max: LEASE_MS,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: entries_kept,
        install_snapshot_timeout: SNAPSHOT_PART_TIMEOUT_MS,
        enable_tick: false,
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(false),
        ..Config::default()
    }
}

impl<E: Env> RaftGroup<E> {
    /// Starts the group of a replica whose log and state were recovered. One that is not alone and
    /// has existed before keeps silent for a lease.
    ///
    /// # Errors
    /// Log and state contradict each other.
    pub async fn start(
        replica: Rc<Replica<E>>,
        log: GroupLog<E>,
        transport: E::Transport,
        start: Start,
        entries_kept: u64,
    ) -> Result<RaftGroup<E>, Fatal> {
        let (range, id) = (replica.group.range, replica.group.replica);
        let failed = |message: String| Fatal::Raft { range, message };
        let entries_kept = if start == Start::Alone {
            0
        } else {
            entries_kept
        };
        let config = config(entries_kept)
            .validate()
            .map_err(|e| failed(e.to_string()))?;
        let store = LogStore::new(log.clone());
        let machine = StateMachine::new(replica, log);
        let links = Links::<E>::new(transport, range, id);
        let raft = Raft::<E>::new(id, Arc::new(config), links, store, machine)
            .await
            .map_err(|e| failed(e.to_string()))?;
        let silence = Duration::from_millis(LEASE_MS) + DRIFT_MARGIN;
        let silent_until = (start == Start::Silent).then(|| Now::<E>::now() + silence);
        let group = RaftGroup {
            range,
            replica: id,
            metrics: raft.metrics(),
            is_alone: start == Start::Alone,
            raft,
            silent_until: Rc::new(Cell::new(silent_until)),
        };
        match start {
            Start::Alone => group.campaign().await?,
            Start::New { leads } => {
                group.raft.runtime_config().tick(true);
                if leads {
                    group.campaign().await?;
                }
            }
            Start::Silent => {
                let silent = group.clone();
                drop(E::Runtime::spawn(async move {
                    E::Runtime::sleep(silence).await;
                    silent.silent_until.set(None);
                    silent.raft.runtime_config().tick(true);
                }));
            }
        }
        Ok(group)
    }

    /// Whether it started as the only voter.
    pub fn is_alone(&self) -> bool {
        self.is_alone
    }

    /// Whether this replica may read alone now: a majority has heard of it within the lease.
    pub fn has_lease(&self) -> bool {
        if self.is_alone {
            return true;
        }
        let acknowledged = self.metrics.borrow_watched().last_quorum_acked;
        let lease = Duration::from_millis(LEASE_MS) - DRIFT_MARGIN;
        acknowledged.is_some_and(|at| Now::<E>::now() < *at + lease)
    }

    /// Asks the voter that has most of the log to lead. From here on this replica must neither
    /// read alone nor propose in its term: the others vote for that one in spite of the lease.
    ///
    /// # Errors
    /// The group has stopped.
    pub async fn hand_over(&self) -> Result<(), Fatal> {
        let target = {
            let metrics = self.metrics.borrow_watched();
            let voters: Vec<ReplicaId> = metrics.membership_config.voter_ids().collect();
            let matched = metrics.replication.iter().flatten();
            let others = matched.filter(|(id, _)| **id != self.replica && voters.contains(id));
            others
                .max_by_key(|(_, matched)| matched.as_ref().map(|id| id.index))
                .map(|(id, _)| *id)
        };
        let Some(target) = target else { return Ok(()) };
        let trigger = self.raft.trigger();
        trigger
            .transfer_leader(target)
            .await
            .map_err(|e| self.failed(e))
    }

    /// Waits until everything that was committed before the call is applied here.
    ///
    /// # Errors
    /// This replica does not lead, or cannot reach a majority; `None`: the group has stopped.
    pub async fn read_barrier(&self) -> bool {
        self.raft
            .ensure_linearizable(ReadPolicy::ReadIndex)
            .await
            .is_ok()
    }

    /// Answers a question of another replica.
    pub async fn answer(&self, question: Question) -> Answer {
        match question {
            Question::Append {
                vote,
                previous,
                committed,
                entries,
            } => {
                let entries = entries.into_iter().map(convert::raft_entry::<E>);
                let Ok(entries) = entries.collect::<Result<_, _>>() else {
                    return Answer::Refused;
                };
                let request = AppendEntriesRequest {
                    vote: convert::raft_vote::<E>(vote),
                    prev_log_id: previous.map(convert::raft_log_id::<E>),
                    entries,
                    leader_commit: committed.map(convert::raft_log_id::<E>),
                };
                match self.raft.append_entries(request).await {
                    Ok(AppendEntriesResponse::Success) => Answer::Appended,
                    Ok(AppendEntriesResponse::PartialSuccess(id)) => {
                        Answer::AppendedUpTo(id.as_ref().map(convert::log_id::<E>))
                    }
                    Ok(AppendEntriesResponse::Conflict) => Answer::Conflict,
                    Ok(AppendEntriesResponse::HigherVote(vote)) => {
                        Answer::HigherVote(convert::vote::<E>(&vote))
                    }
                    Err(_) => Answer::Refused,
                }
            }
            // Parts of snapshots are staged by the shard, which installs them at their end.
            Question::Snapshot(_) => Answer::Refused,
            _ if self.silent_until.get().is_some() => Answer::Refused,
            Question::Vote(candidacy) => {
                let request = vote_request::<E>(&candidacy);
                voted(self.raft.vote(request).await)
            }
            Question::PreVote(candidacy) => {
                let request = vote_request::<E>(&candidacy);
                voted(self.raft.pre_vote(request).await)
            }
            Question::Transfer { vote, last } => {
                let vote = convert::raft_vote::<E>(vote);
                let last = last.map(convert::raft_log_id::<E>);
                let request = TransferLeaderRequest::new(vote, self.replica, last);
                match self.raft.handle_transfer_leader(request).await {
                    Ok(Ok(())) => Answer::Done,
                    _ => Answer::Refused,
                }
            }
        }
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

    /// Takes over a snapshot whose rows are durable in the tree, unless it is not needed any more.
    pub async fn install(&self, vote: Vote, data_id: DataId, state: RangeState) -> Answer {
        let Ok(membership) = stored_membership::<E>(&state.membership) else {
            return Answer::Refused;
        };
        let snapshot = SnapshotOf::<TypeConfig<E>, SnapshotHandle<E>> {
            meta: SnapshotMetaOf::<TypeConfig<E>> {
                last_log_id: state.applied.map(convert::raft_log_id::<E>),
                last_membership: membership,
            },
            snapshot: SnapshotHandle::Staged(data_id, Box::new(state)),
        };
        let vote = convert::raft_vote::<E>(vote);
        match self.raft.install_full_snapshot(vote, snapshot).await {
            Ok(response) => Answer::Installed(convert::vote::<E>(&response.vote)),
            Err(_) => Answer::Refused,
        }
    }

    /// Tells openraft how far the tree is durable, upon which it purges the log but for a tail that
    /// a replica behind can catch up by.
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

    /// Calls `leads` with whoever leads as far as openraft knows, whenever that changes, until the
    /// group stops.
    pub fn watch_leader(&self, leads: impl Fn(Option<ReplicaId>) + 'static) {
        let mut metrics = self.raft.server_metrics();
        drop(E::Runtime::spawn(async move {
            let mut known = None;
            while metrics.changed().await.is_ok() {
                let now = metrics.borrow_watched().current_leader;
                if now != known {
                    leads(now);
                }
                known = now;
            }
        }));
    }
}

/// How a group starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Its only voter: it campaigns at once, and needs neither heartbeats nor a lease.
    Alone,
    /// Of several, and just made: it has promised nobody anything.
    New {
        /// Whether it campaigns at once.
        leads: bool,
    },
    /// Of several, after a restart.
    Silent,
}

fn vote_request<E: Env>(candidacy: &Candidacy) -> VoteRequest<TypeConfig<E>> {
    VoteRequest {
        vote: convert::raft_vote::<E>(candidacy.vote),
        last_log_id: candidacy.last.map(convert::raft_log_id::<E>),
        leadership_transfer: candidacy.transfer,
    }
}

fn voted<E: Env, F>(response: Result<openraft::raft::VoteResponse<TypeConfig<E>>, F>) -> Answer {
    match response {
        Ok(response) => Answer::Voted {
            vote: convert::vote::<E>(&response.vote),
            granted: response.vote_granted,
            last: response.last_log_id.as_ref().map(convert::log_id::<E>),
        },
        Err(_) => Answer::Refused,
    }
}
