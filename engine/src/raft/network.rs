//! openraft's network on the environment's transport: each request becomes a [`message`] to the
//! shard where the other replica lives.
//!
//! A request without an answer, or with the answer [`RaftResponse::Refused`], is `unreachable` to openraft,
//! which tries again later. Appends are pipelined. From what other replicas have accepted, and when that
//! was sent, [`super::lease`] computes the lease and [`super::followers`] notices losses. An append that
//! carries nothing but a new commit index is left out: it would double the messages of a lone write.
//! Snapshots and large appends belong to the bulk class ([`super::append_stream`]).

mod snapshot_sender;

use std::future::Future;
use std::io;
use std::rc::{Rc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use futures_util::stream::Stream;
use futures_util::{StreamExt, pin_mut};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::v2::RaftNetworkV2;
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest as OpenraftVoteRequest,
    VoteResponse,
};

use crate::env::{AsyncRuntime, Env, MessageClass, Transport};
use crate::error::Fatal;
use crate::raft::append_stream::{AppendStream, UnderWay};
use crate::raft::convert;
use crate::raft::counters::RaftCounters;
use crate::raft::followers::{self, Loss};
use crate::raft::machine::{Machine, RuntimeOf};
use crate::raft::message::{self, Envelope, Message, RaftRequest, RaftResponse, VoteRequest};
use crate::raft::progress::Progress;
use crate::raft::snapshot_pace::SnapshotPace;
use crate::raft::state_machine::{Snapshot, SnapshotHandle};
use crate::raft::type_config::{RaftVote, TypeConfig};
use crate::types::{Location, RangeId, ReplicaId};
use crate::wal::{LogId, Vote};
pub use snapshot_sender::PART_TIMEOUT;

/// Pause before a replica that does not answer is asked again; its link has a pause of its own.
/// By time: that another machine can be reached again is no event here.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// The same for a replica that has lost acknowledged entries: another is about to take its place.
const LOST_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Most appends that are on their way to one replica at a time.
const APPENDS_IN_FLIGHT_MAX: usize = 8;

/// Time limit of an append of the bulk class. It has to wait for other bulk messages, and sending it
/// again would only make it wait anew. A link that is silent for this long is broken.
const BULK_APPEND_TIMEOUT: Duration = Duration::from_secs(1);

/// Makes the links of one replica to the others of its range.
pub struct Links<M: Machine> {
    pub transport: <M::Env as Env>::Transport,
    /// A source of random numbers, for the ids of snapshots.
    pub clock: <M::Env as Env>::Clock,
    /// Appends up to this many bytes belong to the control class.
    pub small_append_bytes: usize,
    pub range: RangeId,
    /// The id of this replica.
    pub me: ReplicaId,
    /// Learns of the others from their answers.
    pub progress: Rc<Progress>,
    /// Takes the fatal error if this node's memory has changed what it sends.
    pub machine: Weak<M>,
    /// Counts snapshots.
    pub counters: Rc<RaftCounters>,
    /// The pace of the shard's snapshots.
    pub snapshot_pace: Rc<SnapshotPace>,
}

/// The link to one other replica.
pub struct Link<M: Machine> {
    transport: <M::Env as Env>::Transport,
    envelope: Envelope,
    to: Location,
    progress: Rc<Progress>,
    clock: <M::Env as Env>::Clock,
    small_append_bytes: usize,
    machine: Weak<M>,
    counters: Rc<RaftCounters>,
    snapshot_pace: Rc<SnapshotPace>,
}

impl<M: Machine> Clone for Link<M> {
    fn clone(&self) -> Link<M> {
        Link {
            transport: self.transport.clone(),
            envelope: self.envelope,
            to: self.to,
            progress: self.progress.clone(),
            clock: self.clock.clone(),
            small_append_bytes: self.small_append_bytes,
            machine: self.machine.clone(),
            counters: self.counters.clone(),
            snapshot_pace: self.snapshot_pace.clone(),
        }
    }
}

impl<M: Machine> RaftNetworkFactory<TypeConfig<M>> for Links<M> {
    type Network = Link<M>;

    async fn new_client(&mut self, to: ReplicaId, place: &Location) -> Link<M> {
        Link {
            transport: self.transport.clone(),
            envelope: Envelope {
                range: self.range,
                from: self.me,
                to,
            },
            to: *place,
            progress: self.progress.clone(),
            clock: self.clock.clone(),
            small_append_bytes: self.small_append_bytes,
            machine: self.machine.clone(),
            counters: self.counters.clone(),
            snapshot_pace: self.snapshot_pace.clone(),
        }
    }
}

type Append<M> = AppendEntriesRequest<TypeConfig<M>>;
type Appended<M> = AppendEntriesResponse<TypeConfig<M>>;
type Failed<M> = RPCError<TypeConfig<M>>;

fn unreachable<M: Machine>(error: &io::Error) -> Unreachable<TypeConfig<M>> {
    Unreachable::new(error)
}

/// An append, ready to be sent.
struct Encoded {
    vote: Vote,
    /// The entry before its first.
    previous: Option<LogId>,
    /// Its last entry; without entries, the one before.
    last: Option<LogId>,
    bytes: Bytes,
}

impl<M: Machine> Link<M> {
    /// Sends a request and waits for the answer until the time is up.
    async fn ask(
        &self,
        request: RaftRequest,
        option: &RPCOption,
    ) -> Result<RaftResponse, Unreachable<TypeConfig<M>>> {
        let bytes = message::encode(&Message::Request(self.envelope, request));
        self.call(bytes, MessageClass::Control, option.hard_ttl())
            .await
    }

    async fn call(
        &self,
        request: Bytes,
        class: MessageClass,
        within: Duration,
    ) -> Result<RaftResponse, Unreachable<TypeConfig<M>>> {
        let bytes = self.exchange(request, class, within).await;
        understand::<M>(bytes.map_err(|error| unreachable::<M>(&error))?)
    }

    /// Gives the bytes of the answer, or why there is none.
    async fn exchange(
        &self,
        request: Bytes,
        class: MessageClass,
        within: Duration,
    ) -> io::Result<Bytes> {
        let call = self.transport.call(self.to, class, request);
        match RuntimeOf::<M>::timeout(within, call).await {
            Ok(response) => response,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn encode(&self, rpc: Append<M>) -> Result<Encoded, Failed<M>> {
        let vote = convert::vote(&rpc.vote);
        let previous = rpc.prev_log_id.as_ref().map(convert::log_id);
        let last = rpc.entries.last().map(|entry| entry.log_id);
        let last = last.as_ref().map(convert::log_id).or(previous);
        let entries = rpc.entries.into_iter().map(convert::entry);
        let request = RaftRequest::Append {
            vote,
            previous,
            committed: rpc.leader_commit.as_ref().map(convert::log_id),
            entries: entries
                .collect::<io::Result<_>>()
                .map_err(|error| unreachable::<M>(&error))?,
        };
        Ok(Encoded {
            vote,
            previous,
            last,
            bytes: message::encode(&Message::Request(self.envelope, request)),
        })
    }

    async fn append(
        &self,
        append: Encoded,
        under_way: &UnderWay,
        option: &RPCOption,
    ) -> Result<Appended<M>, Failed<M>> {
        let within = match under_way.class() {
            MessageClass::Control | MessageClass::Clients => option.hard_ttl(),
            MessageClass::Bulk => BULK_APPEND_TIMEOUT,
        };
        let (to, term) = (self.envelope.to, append.vote.term);
        let before = self.progress.followers.of(term, to);
        if let Some(loss) = before.lost {
            // The replica must not acknowledge again: it gets the notice of its loss, no entries.
            self.tell_of_loss(loss, append.vote, option).await;
            return Err(unreachable::<M>(&io::Error::other(LOST)).into());
        }
        // Read before the append leaves: the lease counts from here (see `lease`).
        let sent = M::Env::now();
        let bytes = append.bytes.clone();
        let response = self.call(bytes, under_way.class(), within).await;
        if response.is_err() {
            self.refuse_own_damage(&append.bytes);
        }
        let response = response?;
        let appended = match response {
            RaftResponse::Appended => Some(append.last),
            RaftResponse::AppendedUpTo(id) => Some(id),
            _ => None,
        };
        if let Some(up_to) = appended {
            self.progress.acknowledged.take(term, to, sent);
            self.progress.followers.acknowledge(term, to, up_to);
        }
        Ok(match response {
            RaftResponse::Appended => AppendEntriesResponse::Success,
            RaftResponse::AppendedUpTo(id) => {
                AppendEntriesResponse::PartialSuccess(id.map(convert::raft_log_id))
            }
            RaftResponse::Conflict => {
                if let Some(lost) = followers::is_lost(before.acknowledged, append.previous) {
                    self.note_loss(term, lost, append.previous);
                }
                AppendEntriesResponse::Conflict
            }
            RaftResponse::HigherVote(vote) => {
                AppendEntriesResponse::HigherVote(convert::raft_vote(vote))
            }
            _ => return Err(wrong_answer::<M>().into()),
        })
    }

    /// Ends the process if this node cannot decode its own append: its memory has changed an entry
    /// since it was encoded. No replica will ever accept it, and while this node leads no other
    /// can.
    fn refuse_own_damage(&self, append: &Bytes) {
        if message::decode(append).is_none()
            && let Some(machine) = self.machine.upgrade()
        {
            machine.fail(Fatal::Inconsistent(format!(
                "range {}: the entries that are sent to replica {} do not match their checksums; \
                 this node's memory has changed them, test it",
                self.envelope.range, self.envelope.to
            )));
        }
    }

    /// Notes and logs that the replica lacks an entry that it had acknowledged.
    fn note_loss(&self, term: u64, acknowledged: LogId, lacks: Option<LogId>) {
        if self
            .progress
            .followers
            .lose(term, self.envelope.to, acknowledged)
        {
            tracing::error!(
                range = %self.envelope.range,
                replica = %self.envelope.to,
                at = %self.to,
                acknowledged = acknowledged.index,
                lacks = lacks.map_or(0, |id| id.index),
                "a replica has lost entries that it had acknowledged: was its node's folder put back \
                 from an older copy? The replica counts no more, and another takes its place"
            );
        }
    }

    /// Asks the replica, before a snapshot is sent, whether it still has what it acknowledged: the
    /// snapshot would hide a loss, and the replica would go on voting.
    async fn refuse_lost(
        &self,
        vote: Vote,
        option: &RPCOption,
    ) -> Result<(), Unreachable<TypeConfig<M>>> {
        let (to, term) = (self.envelope.to, vote.term);
        let known = self.progress.followers.of(term, to);
        if let Some(loss) = known.lost {
            self.tell_of_loss(loss, vote, option).await;
        } else if let Some(acknowledged) = known.acknowledged {
            let request = RaftRequest::Lost { vote, acknowledged };
            let asked = self.ask(request, option).await;
            match asked.map_err(|e| unreachable::<M>(&io::Error::other(e.to_string())))? {
                RaftResponse::Done => return Ok(()),
                RaftResponse::Lost => {
                    self.note_loss(term, acknowledged, None);
                    self.progress.followers.told(term, to);
                }
                _ => return Err(wrong_answer::<M>()),
            }
        } else {
            return Ok(());
        }
        Err(unreachable::<M>(&io::Error::other(LOST)))
    }

    async fn tell_of_loss(&self, loss: Loss, vote: Vote, option: &RPCOption) {
        if loss.is_told {
            return;
        }
        let request = RaftRequest::Lost {
            vote,
            acknowledged: loss.acknowledged,
        };
        match self.ask(request, option).await {
            Ok(RaftResponse::Lost) => self.progress.followers.told(vote.term, self.envelope.to),
            Ok(RaftResponse::Done) => self.progress.followers.found(vote.term, self.envelope.to),
            // No answer: the next append asks again.
            _ => {}
        }
    }

    async fn request_vote(
        &self,
        rpc: OpenraftVoteRequest<TypeConfig<M>>,
        request: fn(VoteRequest) -> RaftRequest,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig<M>>, Failed<M>> {
        let request = request(VoteRequest {
            vote: convert::vote(&rpc.vote),
            last: rpc.last_log_id.as_ref().map(convert::log_id),
            transfer: rpc.leadership_transfer,
        });
        match self.ask(request, &option).await? {
            RaftResponse::Voted {
                vote,
                granted,
                last,
            } => Ok(VoteResponse {
                vote: convert::raft_vote(vote),
                vote_granted: granted,
                last_log_id: last.map(convert::raft_log_id),
            }),
            _ => Err(wrong_answer::<M>().into()),
        }
    }
}

/// Why the replica gets no more entries.
const LOST: &str = "the replica has lost entries that it had acknowledged";

/// Decodes an answer; a refusal is an error.
fn understand<M: Machine>(response: Bytes) -> Result<RaftResponse, Unreachable<TypeConfig<M>>> {
    let failed = |why| Err(unreachable::<M>(&io::Error::other(why)));
    match message::decode_response(&response) {
        None => failed("the answer makes no sense"),
        Some(RaftResponse::Refused) => failed("the replica is not there, or not ready"),
        Some(response) => Ok(response),
    }
}

fn wrong_answer<M: Machine>() -> Unreachable<TypeConfig<M>> {
    unreachable::<M>(&io::Error::other("an answer of the wrong kind"))
}

impl<M: Machine> RaftNetworkV2<TypeConfig<M>> for Link<M> {
    type SnapshotData = SnapshotHandle<M>;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig<M>>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig<M>>, RPCError<TypeConfig<M>>> {
        // This append is in no stream: it gets a stream of its own.
        let append = self.encode(rpc)?;
        let stream = AppendStream::new(self.small_append_bytes);
        let under_way = stream.enter(append.bytes.len()).await;
        self.append(append, &under_way, &option).await
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<
            BoxStream<'s, Result<StreamAppendResult<TypeConfig<M>>, RPCError<TypeConfig<M>>>>,
            RPCError<TypeConfig<M>>,
        >,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig<M>>> + Unpin + 'static,
    {
        // A new commit index goes with the next entries, or with a heartbeat: the first of its own
        // stream.
        let mut is_first = true;
        let input = input.filter(move |rpc| {
            let news = std::mem::take(&mut is_first) || !rpc.entries.is_empty();
            std::future::ready(news)
        });
        let (link, stream) = (self.clone(), AppendStream::new(self.small_append_bytes));
        let entered = input.then(move |rpc| {
            let stream = stream.clone();
            let previous = rpc.prev_log_id;
            let last = rpc.entries.last().map(|entry| entry.log_id);
            let range = (previous, last.or(previous));
            let append = link.encode(rpc);
            async move {
                let len = append.as_ref().map_or(0, |append| append.bytes.len());
                (stream.enter(len).await, append, range)
            }
        });
        let link = self.clone();
        let asked = entered.map(move |(under_way, append, (previous, last))| {
            let (link, option) = (link.clone(), option.clone());
            async move {
                let response = link.append(append?, &under_way, &option).await?;
                Ok(response.into_stream_result(previous, last))
            }
        });
        let results = asked.buffered(APPENDS_IN_FLIGHT_MAX);
        // After an error this stream ends; openraft sends the rest in a new stream.
        let results = results.scan(false, |ended, result: Result<StreamAppendResult<_>, _>| {
            if *ended {
                return std::future::ready(None);
            }
            *ended = !matches!(result, Ok(Ok(_)));
            std::future::ready(Some(result))
        });
        let results: BoxStream<'s, _> = Box::pin(results);
        Box::pin(std::future::ready(Ok(results)))
    }

    fn backoff(&self) -> Option<Backoff> {
        let pause = match self.progress.followers.has_lost(self.envelope.to) {
            true => LOST_RETRY_INTERVAL,
            false => RETRY_INTERVAL,
        };
        Some(Backoff::new(std::iter::repeat(pause)))
    }

    async fn vote(
        &mut self,
        rpc: OpenraftVoteRequest<TypeConfig<M>>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig<M>>, RPCError<TypeConfig<M>>> {
        self.request_vote(rpc, RaftRequest::Vote, option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: OpenraftVoteRequest<TypeConfig<M>>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig<M>>, RPCError<TypeConfig<M>>> {
        self.request_vote(rpc, RaftRequest::PreVote, option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: RaftVote,
        snapshot: Snapshot<M>,
        cancel: impl Future<Output = ReplicationClosed> + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig<M>>, StreamingError<TypeConfig<M>>> {
        let SnapshotHandle::Own(machine, pin) = snapshot.snapshot else {
            let error = io::Error::other("a snapshot from elsewhere is not passed on");
            return Err(unreachable::<M>(&error).into());
        };
        let vote = convert::vote(&vote);
        pin.iter().for_each(|pin| pin.is_for(self.envelope.to));
        let sending = async {
            self.refuse_lost(vote, &option).await?;
            self.send_snapshot(machine, vote, &option).await
        };
        pin_mut!(sending, cancel);
        match select(sending, cancel).await {
            Either::Left((sent, _)) => {
                self.counters.count(|stats| match sent {
                    Ok(_) => stats.snapshots_sent += 1,
                    Err(_) => stats.snapshots_failed += 1,
                });
                let sent = sent?;
                pin.into_iter().for_each(|pin| pin.installed(M::Env::now()));
                Ok(sent)
            }
            Either::Right((closed, _)) => {
                self.counters.count(|stats| stats.snapshots_failed += 1);
                Err(closed.into())
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<TypeConfig<M>>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig<M>>, RPCError<TypeConfig<M>>> {
        // openraft calls this for every replica; the others learn it from the candidate's vote
        // request.
        if *rpc.to_node_id() != self.envelope.to {
            return Ok(Ok(()));
        }
        let request = RaftRequest::Transfer {
            vote: convert::vote(rpc.from_leader()),
            last: rpc.last_log_id().map(convert::log_id),
        };
        match self.ask(request, &option).await? {
            RaftResponse::Done => Ok(Ok(())),
            _ => Err(wrong_answer::<M>().into()),
        }
    }
}
