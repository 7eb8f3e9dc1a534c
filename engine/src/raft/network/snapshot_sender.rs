//! Sends a snapshot of a replica to another one, part by part.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use openraft::errors::Unreachable;
use openraft::network::RPCOption;
use openraft::raft::SnapshotResponse;

use super::{Link, RETRY_INTERVAL, understand, unreachable, wrong_answer};
use crate::env::{AsyncRuntime, Clock, Env, MessageClass};
use crate::raft::convert;
use crate::raft::machine::{Machine, RuntimeOf, SnapshotReader};
use crate::raft::message::{self, Message, RaftRequest, RaftResponse, SnapshotPart, SnapshotRow};
use crate::raft::type_config::TypeConfig;
use crate::wal::Vote;

/// How long one part of a snapshot is sent again and again until it is answered; the receiver takes
/// it once. If every failure started the snapshot over, a large one would never arrive over a link
/// that breaks now and then, or at a receiver that is behind with its flushes.
pub const PART_TIMEOUT: Duration = Duration::from_mins(1);
/// The same for the end of a snapshot, at which the receiver flushes all of it and loads its
/// session table. Giving up earlier would send everything again. A restarted receiver refuses at
/// once.
const END_TIMEOUT: Duration = Duration::from_mins(10);

/// Shortest pause after a part of a snapshot: others use the link and the disks, too. The pauses of all
/// snapshots that a shard sends add up ([`SnapshotPace`](crate::raft::snapshot_pace)). With parts of
/// 256 KiB this allows the shard 64 MiB a second at most.
const PART_PAUSE: Duration = Duration::from_millis(4);
/// The pause is also at least this many times as long as reading the part took: a snapshot yields
/// to all else that the shard does, and what slows its reads (a busy processor) slows it. Waits for the disk
/// do not count: it has one read on its way at a time.
const PAUSE_PER_READ: u32 = 8;
/// And at least this many times as long as the answer took, up to [`ANSWER_PAUSE_MAX`]: so it yields to what
/// the receiver does, too. An answer also takes long because the receiver could not be reached.
const PAUSE_PER_ANSWER: u32 = 2;
const ANSWER_PAUSE_MAX: Duration = Duration::from_millis(100);
/// These pauses are for a part with so many bytes, and shorter for one with fewer: hundreds of ranges with hardly
/// any rows would else wait for each other, though all of them together send no more than one part.
const WHOLE_PART: usize = 256 << 10;
/// But a part counts as so many bytes at least.
const SHORT_PART: usize = WHOLE_PART / 64;

/// The pause after a part with so many bytes; how long it took to read it, and to get the answer.
fn pause_after(bytes: usize, read: Duration, answer: Duration) -> Duration {
    let of_whole = (answer * PAUSE_PER_ANSWER).clamp(PART_PAUSE, ANSWER_PAUSE_MAX);
    let counted = bytes.clamp(SHORT_PART, WHOLE_PART) as u32;
    let of_bytes = of_whole * counted / WHOLE_PART as u32;
    of_bytes.max(read * PAUSE_PER_READ)
}

impl<M: Machine> Link<M> {
    /// Sends a part of a snapshot until it is answered or its time is up.
    async fn send_part(
        &self,
        part: SnapshotPart,
        option: &RPCOption,
    ) -> Result<RaftResponse, Unreachable<TypeConfig<M>>> {
        let is_end = matches!(part, SnapshotPart::End { .. });
        let timeout = if is_end { END_TIMEOUT } else { PART_TIMEOUT };
        let part = Message::Request(self.envelope, RaftRequest::Snapshot(part));
        let part = message::encode(&part);
        let until = M::Env::now() + timeout;
        loop {
            let sent = self.exchange(part.clone(), MessageClass::Bulk, option.hard_ttl());
            match sent.await {
                Ok(response) => return understand::<M>(response),
                Err(error) if M::Env::now() >= until => {
                    return Err(unreachable::<M>(&error));
                }
                Err(error) => {
                    tracing::debug!(range = %self.envelope.range, %error, "a part is sent again");
                    RuntimeOf::<M>::sleep(RETRY_INTERVAL).await;
                }
            }
        }
    }

    /// Sends a snapshot of a replica as it is now, part by part.
    pub(super) async fn send_snapshot(
        &self,
        machine: Rc<M>,
        vote: Vote,
        option: &RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig<M>>, Unreachable<TypeConfig<M>>> {
        let failed = |error: String| unreachable::<M>(&io::Error::other(error));
        // Random, so that no late part of another snapshot carries it, not even one from before a
        // restart.
        let number = self.clock.random_u64();
        let mut reader = machine.read_snapshot().map_err(|e| failed(e.to_string()))?;
        let mut parts = 0;
        loop {
            let part = reader.next_part().await;
            let (rows, took) = part.map_err(|e| failed(e.to_string()))?;
            // An empty range has one part, too: the first part begins the snapshot at the receiver.
            if rows.is_empty() && parts > 0 {
                break;
            }
            let len = |row: &SnapshotRow| row.key.len() + row.value.as_ref().map_or(0, Bytes::len);
            let bytes: usize = rows.iter().map(len).sum();
            let part = SnapshotPart::rows(number, parts, rows);
            let sent = M::Env::now();
            match self.send_part(part, option).await? {
                RaftResponse::Done => {
                    parts += 1;
                    self.counters
                        .count(|stats| stats.snapshot_bytes_sent += bytes as u64);
                }
                _ => return Err(wrong_answer::<M>()),
            }
            self.progress.part_taken.set(Some(M::Env::now()));
            let pause = pause_after(bytes, took, M::Env::now() - sent);
            let wait = self.snapshot_pace.wait_for(M::Env::now(), pause);
            RuntimeOf::<M>::sleep(wait).await;
        }
        let end = SnapshotPart::End {
            number,
            parts,
            vote,
            last: reader.last(),
            state: reader.state(),
            gc_threshold: reader.gc_threshold(),
        };
        match self.send_part(end, option).await? {
            RaftResponse::Installed(answered) => {
                if answered.term == vote.term {
                    let (to, last) = (self.envelope.to, reader.last());
                    self.progress
                        .followers
                        .acknowledge(vote.term, to, Some(last));
                }
                Ok(SnapshotResponse::new(convert::raft_vote(answered)))
            }
            _ => Err(wrong_answer::<M>()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const NONE: Duration = Duration::ZERO;

    #[test]
    fn a_whole_part_yields_to_reads_and_to_the_receiver() {
        assert_eq!(pause_after(WHOLE_PART, NONE, NONE), PART_PAUSE);
        assert_eq!(pause_after(WHOLE_PART, NONE, 20 * MS), 40 * MS);
        assert_eq!(
            pause_after(WHOLE_PART + 1, NONE, 900 * MS),
            ANSWER_PAUSE_MAX
        );
        assert_eq!(pause_after(WHOLE_PART, 10 * MS, 20 * MS), 80 * MS);
    }

    #[test]
    fn hundreds_of_parts_with_hardly_any_bytes_wait_about_a_second_in_all() {
        let slow = 900 * MS;
        assert!(pause_after(0, NONE, slow) * 500 < 1000 * MS);
        assert!(pause_after(0, NONE, slow) * 64 >= ANSWER_PAUSE_MAX);
        assert_eq!(
            pause_after(WHOLE_PART / 2, NONE, slow),
            ANSWER_PAUSE_MAX / 2
        );
        assert_eq!(pause_after(0, MS, slow), 8 * MS, "reads count as they are");
    }
}
