//! [`RaftGroup`]: the small interface that hides openraft from the rest of the engine.

use std::cell::Cell;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use openraft::alias::WatchReceiverOf;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::metrics::RaftMetrics;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, ClientWriteResult};
use openraft::{Config, ServerState, SnapshotPolicy};

use crate::env::{AsyncRuntime, Clock, Env};
use crate::error::Fatal;
use crate::limits::{DRIFT_MARGIN, LEASE_MS};
use crate::mutant::{self, Mutant};
use crate::raft::convert;
use crate::raft::counters::RaftCounters;
use crate::raft::ending::Ending;
use crate::raft::log_store::LogStore;
use crate::raft::machine::{Machine, RuntimeOf};
use crate::raft::message::{RaftRequest, RaftResponse};
use crate::raft::network::Links;
use crate::raft::pins::Pins;
use crate::raft::progress::Progress;
use crate::raft::role::{Role, Standing};
use crate::raft::snapshot_pace::SnapshotPace;
use crate::raft::state_machine::StateMachine;
use crate::raft::timers::{DriverTimes, HEARTBEAT, Timers};
use crate::raft::type_config::{CallbackResponder, Commands, RaftMembership, TypeConfig};
use crate::types::{RangeId, ReplicaId};
use crate::wal::{self, Body, GroupLog, LogId, Vote};

/// The end of a proposal: the results of apply, or openraft's refusal.
pub type ProposalResult<M> = ClientWriteResult<TypeConfig<M>>;

type Raft<M> = openraft::Raft<TypeConfig<M>, StateMachine<M>>;

/// openraft waits this long for the answer to one part of a snapshot; then the part is sent again.
const SNAPSHOT_PART_TIMEOUT_MS: u64 = 5_000;
/// The Raft group of one replica. Clones are the same group.
pub struct RaftGroup<M: Machine> {
    group: Rc<Group<M>>,
}

/// See [`RaftGroup`].
pub struct Group<M: Machine> {
    pub(super) range: RangeId,
    pub(super) replica: ReplicaId,
    pub(super) raft: Raft<M>,
    pub(super) standing: Standing,
    pub(super) metrics: WatchReceiverOf<TypeConfig<M>, RaftMetrics<TypeConfig<M>>>,
    /// Whether it neither votes nor campaigns yet: after a restart, openraft does not know which
    /// leader still holds a lease from this replica.
    pub(super) silent: Cell<bool>,
    /// What this replica knows of the others from when it last led.
    pub(super) progress: Rc<Progress>,
    pub(super) timers: Timers,
    /// How many entries are kept for replicas that are behind, though the tree has made them
    /// durable.
    pub(super) entries_kept: u64,
    pub(super) log: GroupLog<M::Env>,
    /// Which part of the log is kept for replicas that receive a snapshot.
    pub(super) pins: Rc<Pins>,
    /// Whether this replica is carrying out a change of members.
    pub(super) changing: Cell<bool>,
    /// Whether it is being removed, or has stopped.
    pub(super) ending: Rc<Ending>,
    /// The term in which it asked another to lead; in it, it no longer stands in the way of an
    /// election.
    pub(super) transferred: Cell<u64>,
    /// See [`GroupDeps::leaves`].
    pub(super) leaves: Rc<Cell<bool>>,
}

impl<M: Machine> Clone for RaftGroup<M> {
    fn clone(&self) -> RaftGroup<M> {
        RaftGroup {
            group: self.group.clone(),
        }
    }
}

impl<M: Machine> Deref for RaftGroup<M> {
    type Target = Group<M>;

    fn deref(&self) -> &Group<M> {
        &self.group
    }
}

/// openraft's settings. openraft never purges by a policy of its own: see [`Group::purge`].
/// `log_stage_capacity` belongs to a feature that is off, and is as small as it can be.
fn config() -> Config {
    Config {
        cluster_name: "rangedb".to_owned(),
        heartbeat_interval: HEARTBEAT.as_millis() as u64,
        election_timeout_min: LEASE_MS * 3 / 4,
        election_timeout_max: LEASE_MS,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX / 2,
        install_snapshot_timeout: SNAPSHOT_PART_TIMEOUT_MS,
        log_stage_capacity: Some(1),
        enable_tick: false,
        // A leader may see a follower's log shrink: see [`super::followers`].
        allow_log_reversion: Some(true),
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(false),
        ..Config::default()
    }
}

impl<M: Machine> RaftGroup<M> {
    /// Starts the group of a replica whose log and state were recovered. A replica that existed
    /// before this start of the process, and is not the only voter, withholds its vote for one
    /// lease.
    ///
    /// # Errors
    /// Log and state contradict each other.
    pub async fn start(
        machine: Rc<M>,
        log: GroupLog<M::Env>,
        around: GroupDeps<M::Env>,
        made: StartMode,
    ) -> Result<RaftGroup<M>, Fatal> {
        let wal::Group { range, replica: id } = machine.group();
        let failed = |message: String| Fatal::Raft {
            range,
            message: format!("replica {id}: {message}"),
        };
        let config = config().validate().map_err(|e| failed(e.to_string()))?;
        let store = LogStore::new(log.clone());
        let pins = Rc::new(Pins::default());
        let progress = Rc::new(Progress::new());
        let links = Links::<M> {
            transport: around.transport,
            clock: around.clock.clone(),
            small_append_bytes: around.small_append_bytes,
            range,
            me: id,
            progress: progress.clone(),
            machine: Rc::downgrade(&machine),
            counters: around.counters,
            snapshot_pace: around.snapshot_pace,
        };
        let ending = Rc::new(Ending::default());
        let machine = StateMachine::new(machine, log.clone(), pins.clone(), ending.clone());
        let raft = Raft::<M>::new(id, Arc::new(config), links, store, machine)
            .await
            .map_err(|e| failed(e.to_string()))?;
        // The membership in the log, not the one that is applied: the log may hold a newer one.
        let effective = raft
            .with_raft_state(|state| state.membership_state.effective().clone())
            .await
            .map_err(|e| failed(e.to_string()))?;
        let alone = effective.voter_ids().eq([id]);
        // A restart forgets what the replica had promised; it keeps the promise by not voting.
        let forgets = mutant::is(Mutant::VoteAfterRestart);
        let group = RaftGroup {
            group: Rc::new(Group {
                range,
                replica: id,
                metrics: raft.metrics(),
                standing: Standing::new(alone),
                raft,
                silent: Cell::new(made == StartMode::Before && !alone && !forgets),
                progress,
                timers: Timers::new(M::Env::now(), around.driver, made == StartMode::Before),
                entries_kept: around.entries_kept,
                log,
                pins,
                changing: Cell::new(false),
                ending,
                transferred: Cell::new(0),
                leaves: around.leaves,
            }),
        };
        match made {
            _ if alone => group.campaign().await?,
            StartMode::Now { leads: true } => group.campaign().await?,
            StartMode::Now { leads: false } => {}
            StartMode::Before => group.end_silence_later(around.clock),
        }
        Ok(group)
    }

    /// Lets a replica that existed before vote again once every lease that it may have promised has
    /// run out.
    fn end_silence_later(&self, clock: <M::Env as Env>::Clock) {
        let silent = self.clone();
        drop(RuntimeOf::<M>::spawn(async move {
            RuntimeOf::<M>::sleep(Duration::from_millis(LEASE_MS) + DRIFT_MARGIN).await;
            silent.timers.end_silence(M::Env::now(), clock.random_u64());
            silent.silent.set(false);
        }));
    }

    /// Calls `leads` with the leader that openraft knows and the term of this replica's vote, now
    /// and whenever one of them changes, until the group stops.
    pub fn watch_leader(&self, leads: impl Fn(Option<ReplicaId>, u64) + 'static) {
        let group = self.clone();
        let mut metrics = self.raft.server_metrics();
        drop(RuntimeOf::<M>::spawn(async move {
            let mut known = (None, 0);
            loop {
                let now = {
                    let metrics = metrics.borrow_watched();
                    group.take_standing(metrics.state, &metrics.membership_config);
                    (metrics.current_leader, metrics.vote.leader_id.term)
                };
                if now != known {
                    leads(now.0, now.1);
                }
                known = now;
                if metrics.changed().await.is_err() {
                    return;
                }
            }
        }));
    }
}

impl<M: Machine> Group<M> {
    /// The range that this group replicates.
    pub fn range(&self) -> RangeId {
        self.range
    }

    /// The id of this replica.
    pub fn replica(&self) -> ReplicaId {
        self.replica
    }

    /// Whether this replica is the only voter.
    pub fn is_alone(&self) -> bool {
        self.standing.alone.get()
    }

    /// This replica's role.
    pub fn role(&self) -> Role {
        self.standing.role.get()
    }

    /// Wakes the group up: its heartbeats go on, and its leader soon has a lease.
    ///
    /// # Errors
    /// The group has stopped.
    pub async fn wake(&self) -> Result<(), Fatal> {
        self.stay_awake();
        self.told(self.raft.trigger().heartbeat().await)
    }

    /// Takes the standing of this replica from openraft's metrics.
    fn take_standing(&self, state: ServerState, membership: &RaftMembership) {
        let news = self.standing.take(self.replica, state, membership);
        if news.role {
            self.timers.stand();
        }
        if news.members {
            self.stay_awake();
        }
        if news.leads {
            self.timers.lead(M::Env::now());
        }
    }

    /// The term of this replica's vote.
    pub fn term(&self) -> u64 {
        self.metrics.borrow_watched().current_term
    }

    /// Answers a request of another replica.
    pub async fn answer(&self, request: RaftRequest) -> RaftResponse {
        match request {
            _ if self.is_retired() => RaftResponse::Refused,
            RaftRequest::Append {
                vote,
                previous,
                committed,
                entries,
            } => {
                let entries = entries.into_iter().map(convert::raft_entry);
                let Ok(entries) = entries.collect::<Result<_, _>>() else {
                    return RaftResponse::Refused;
                };
                let request = AppendEntriesRequest {
                    vote: convert::raft_vote(vote),
                    prev_log_id: previous.map(convert::raft_log_id),
                    entries,
                    leader_commit: committed.map(convert::raft_log_id),
                };
                self.append(request).await
            }
            // The shard handles these two itself: it stages the parts of a snapshot and installs it
            // at the end, and it removes a replica that has lost entries.
            RaftRequest::Snapshot(_) | RaftRequest::Lost { .. } => RaftResponse::Refused,
            RaftRequest::Transfer { vote, last } => self.timeout_now(vote, last).await,
            // The leader gave up its lease for a candidate that it chose itself.
            RaftRequest::Vote(vote_request) if self.silent.get() && !vote_request.transfer => {
                RaftResponse::Refused
            }
            RaftRequest::Vote(vote_request) => {
                let request = convert::vote_request(&vote_request);
                let response = convert::voted(self.raft.vote(request).await);
                if matches!(response, RaftResponse::Voted { granted: true, .. }) {
                    self.timers.grant(M::Env::now());
                }
                response
            }
            RaftRequest::PreVote(_) if self.silent.get() => RaftResponse::Refused,
            RaftRequest::PreVote(vote_request) if mutant::is(Mutant::PreVoteGrants) => {
                RaftResponse::Voted {
                    vote: vote_request.vote,
                    granted: true,
                    last: vote_request.last,
                }
            }
            // openraft counts heartbeats only, and the leader of a sleeping group sends none.
            RaftRequest::PreVote(_)
                if self.standing.role.get() == Role::Leader && !self.has_transferred() =>
            {
                // A refusal is one vote of many: followers that this leader cannot reach elect
                // another without it. Those that it can reach get heartbeats again.
                self.stay_awake();
                RaftResponse::Refused
            }
            RaftRequest::PreVote(_) if self.timers.has_heard(M::Env::now()) => {
                RaftResponse::Refused
            }
            RaftRequest::PreVote(vote_request) => {
                let request = convert::vote_request(&vote_request);
                convert::voted(self.raft.pre_vote(request).await)
            }
        }
    }

    /// Whether another replica has lost what it had acknowledged to this leader.
    pub fn has_lost(&self, replica: ReplicaId) -> bool {
        self.progress.followers.has_lost(replica)
    }

    /// Whether an entry is missing here that, as the leader says, this replica has acknowledged.
    ///
    /// # Errors
    /// The answer to a sender that no longer leads: a later leader may have taken the entry back.
    pub fn lacks(&self, vote: Vote, acknowledged: LogId) -> Result<bool, RaftResponse> {
        let state = self.log.state();
        if let Some(own) = state.vote
            && (own.term, own.leader) > (vote.term, vote.leader)
        {
            return Err(RaftResponse::HigherVote(own));
        }
        let purged = state
            .purged
            .is_some_and(|id| id.index >= acknowledged.index);
        Ok(!purged && !self.log.has(acknowledged))
    }

    /// Appends the entries of a leader. The leader counts as alive unless a later one is known here.
    async fn append(&self, request: AppendEntriesRequest<TypeConfig<M>>) -> RaftResponse {
        let asked = M::Env::now();
        let Ok(response) = self.raft.append_entries(request).await else {
            return RaftResponse::Refused;
        };
        if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
            self.timers.hear(asked);
        }
        match response {
            AppendEntriesResponse::Success => RaftResponse::Appended,
            AppendEntriesResponse::PartialSuccess(id) => {
                RaftResponse::AppendedUpTo(id.as_ref().map(convert::log_id))
            }
            AppendEntriesResponse::Conflict => RaftResponse::Conflict,
            AppendEntriesResponse::HigherVote(vote) => {
                RaftResponse::HigherVote(convert::vote(&vote))
            }
        }
    }

    /// Turns the result of a call into openraft into ours. Errors of a replica that is being
    /// removed do not count: its Raft tasks may have stopped already.
    pub(super) fn told(&self, told: Result<(), impl std::fmt::Display>) -> Result<(), Fatal> {
        match told {
            Err(_) if self.is_retired() => Ok(()),
            told => told.map_err(|e| self.failed(e)),
        }
    }

    pub(super) fn failed(&self, error: impl std::fmt::Display) -> Fatal {
        Fatal::Raft {
            range: self.range,
            message: error.to_string(),
        }
    }

    /// Starts an election. In a group of one voter this replica leads as soon as its vote is
    /// durable.
    ///
    /// # Errors
    /// The group has stopped.
    pub async fn campaign(&self) -> Result<(), Fatal> {
        self.told(self.raft.trigger().elect(true).await)
    }

    /// Proposes one entry. `done` is called once, on this thread, when the entry was applied or
    /// refused. It is never called if the group has stopped.
    ///
    /// # Errors
    /// The group has stopped.
    pub async fn propose(
        &self,
        commands: Body,
        done: impl FnOnce(ProposalResult<M>) + 'static,
    ) -> Result<(), Fatal> {
        let responder = CallbackResponder::new(done);
        let commands = Commands(commands);
        self.stay_awake();
        self.told(self.raft.client_write_ff(commands, Some(responder)).await)
    }

    /// Stops the group's tasks. Nothing is applied after that.
    pub async fn stop(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(range = %self.range, %error, "a Raft task had failed before the stop");
        }
        self.ending.stop();
    }
}

/// What a group needs from its shard. Clones share everything that changes.
#[derive(Clone)]
pub struct GroupDeps<E: Env> {
    /// Sends messages to other shards.
    pub transport: E::Transport,
    /// A source of random numbers.
    pub clock: E::Clock,
    /// How many entries to keep for replicas that are behind, though the tree has made them
    /// durable.
    pub entries_kept: u64,
    /// Appends up to this many bytes belong to the control class.
    pub small_append_bytes: usize,
    /// The times that the timers of the shard's groups share with the shard's driver.
    pub driver: Rc<DriverTimes>,
    /// What the shard's groups count.
    pub counters: Rc<RaftCounters>,
    /// The pace of the snapshots that the shard's groups send.
    pub snapshot_pace: Rc<SnapshotPace>,
    /// Whether the node is stopping: its replicas no longer campaign, and refuse leadership
    /// transfers.
    pub leaves: Rc<Cell<bool>>,
}

/// Whether a replica is new or recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartMode {
    /// It was created just now and has promised nobody anything.
    Now {
        /// Whether it campaigns at once.
        leads: bool,
    },
    /// It existed before this start of the process. Unless it is the only voter, it withholds its
    /// vote for one lease.
    Before,
}
