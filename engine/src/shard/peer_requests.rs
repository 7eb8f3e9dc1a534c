//! Requests of other shards to this one.

use std::io;
use std::pin::pin;

use bytes::Bytes;
use futures_util::future::select;

use crate::env::{Env, MessageClass, Transport};
use crate::mutant::{self, Mutant};
use crate::raft::{self, Message, RaftRequest, RaftResponse};
use crate::range::{RaftGroup, Route};
use crate::shard::{Shard, ShardInner};

use crate::types::Location;
use crate::wal::{Group, LogId, Vote};

impl<E: Env> Shard<E> {
    /// Answers a request of another replica or shard. It never makes a replica that is not here.
    pub async fn answer(&self, request: Bytes) -> Bytes {
        let response = match raft::decode(&request) {
            Some(Message::Request(envelope, request)) => {
                let group = Group {
                    range: envelope.range,
                    replica: envelope.to,
                };
                match self.inner.running(group).map(|running| running.raft) {
                    Some(group) => match request {
                        RaftRequest::Snapshot(part) => self.take_part(&group, envelope, part).await,
                        RaftRequest::Lost { vote, acknowledged } => {
                            self.inner.take_loss(&group, vote, acknowledged).await
                        }
                        // The leader keeps the entries and sends them again.
                        RaftRequest::Append { ref entries, .. }
                            if !entries.is_empty() && !self.inner.store.log_has_room() =>
                        {
                            RaftResponse::Refused
                        }
                        request => group.answer(request).await,
                    },
                    None => RaftResponse::Refused,
                }
            }
            Some(Message::Heartbeat {
                from,
                leads,
                write_p99_micros,
                now: told,
            }) => {
                // A time too far above the wall clock is that of a node whose clock is wrong.
                let _ = self.inner.follow("heartbeat", told);
                let now = E::now();
                let slow_disk = &self.inner.liveness.slow_disk;
                slow_disk.heard(from, write_p99_micros, now);
                return raft::encode_to_wake(&self.inner.take_beat(from, &leads));
            }
            Some(Message::Cluster(message)) => {
                return self.inner.take_message(&message).await.into();
            }
            None => RaftResponse::Refused,
        };
        raft::encode_response(&response)
    }

    /// Sends a request to the shard at `to`, as [`Transport::call`] does.
    ///
    /// # Errors
    /// Those of [`Transport::call`].
    pub async fn call(
        &self,
        to: Location,
        class: MessageClass,
        request: Bytes,
    ) -> io::Result<Bytes> {
        let transport = self.inner.around.transport.clone();
        transport.call(to, class, request).await
    }

    /// The route to the leader of a key's range, if the range has a replica here and a known leader
    /// elsewhere that reaches a majority.
    pub fn led_elsewhere(&self, key: &[u8]) -> Option<Route> {
        let replica = self.find(key).ok()?;
        if replica.leading().is_some() || replica.leadership.lacks_quorum() {
            return None;
        }
        let route = replica.route();
        let leader = route.leader?;
        (leader != self.inner.location).then_some(route)
    }

    /// Waits until there may be news of the leader of a key's range, for a caller that knows
    /// [`Shard::routes_version`] as it was: routes have changed, or the range's replica here leads.
    pub async fn leader_changed(&self, key: &[u8], known: usize) {
        let changed = pin!(self.routes_changed(known));
        match self.find(key) {
            Ok(replica) if replica.leading().is_none() => {
                select(changed, pin!(replica.led())).await;
            }
            _ => changed.await,
        }
    }

    /// Whether the range of a key has a replica here.
    pub fn holds(&self, key: &[u8]) -> bool {
        let inner = &self.inner;
        inner.ranges.with(key, |_| ()).is_some() || inner.home.newborns.holder_of(key).is_some()
    }

    /// Whether the range of a key has a replica here that reaches no majority.
    pub fn lacks_quorum(&self, key: &[u8]) -> bool {
        self.find(key)
            .is_ok_and(|replica| replica.leadership.lacks_quorum())
    }
}

impl<E: Env> ShardInner<E> {
    /// Handles the leader's notice that a replica here lacks an entry which it had acknowledged. If
    /// that is true, the replica removes itself: it may have forgotten votes, too, and others rely
    /// on its acknowledgements.
    async fn take_loss(
        &self,
        group: &RaftGroup<E>,
        vote: Vote,
        acknowledged: LogId,
    ) -> RaftResponse {
        if self.closing.get() || group.is_retired() || mutant::is(Mutant::OldFolderVotes) {
            return RaftResponse::Refused;
        }
        match group.lacks(vote, acknowledged) {
            Err(response) => return response,
            Ok(false) => return RaftResponse::Done,
            Ok(true) => {}
        }
        let (range, replica) = (group.range(), group.replica());
        tracing::error!(
            %range,
            %replica,
            shard = %self.location,
            acknowledged = acknowledged.index,
            "this replica has lost entries that it had acknowledged: was the data folder put back from \
             an older copy? The replica is removed, and the cluster makes another one"
        );
        match self.remove_replica(range, replica).await {
            Ok(_) => RaftResponse::Lost,
            Err(_) if self.closing.get() => RaftResponse::Refused,
            Err(fatal) => {
                self.store.fail(fatal);
                RaftResponse::Refused
            }
        }
    }
}
