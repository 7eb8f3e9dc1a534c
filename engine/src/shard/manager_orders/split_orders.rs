//! Orders to split ranges, from operators and from the manager itself ([`super::auto_splits`]). The manager
//! first gives out ids, then makes one split after the other, by halves ([`SplitOrder`]), and at last
//! records until when the new ranges must not be merged. An order for many keys makes coarse parts first,
//! waits until these are scattered over nodes and shards, and then splits them.
//!
//! The leader of a range splits it ([`crate::shard::split_merge::split`]), and reports both ranges at once; the
//! next split of either begins when that report is there. A leader that has lost its leadership refuses, and
//! the new one is asked. Runs on the shard that hosts the manager.

use std::ops::RangeInclusive;
use std::rc::Rc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::boot_time::BootTime;
use crate::cluster::manager::Manager;
use crate::cluster::record::{HeldRecord, Row};
use crate::cluster::split_merge::split::{self, Piece, SplitOrder};
use crate::cluster::{ClusterRequest, ClusterResponse};
use crate::env::{AsyncRuntime, Env};
use crate::error::{Fate, OrderError};
use crate::limits::SPLIT_KEYS_MAX;
use crate::notify::Count;
use crate::range::Descriptor;
use crate::shard::{ShardInner, SplitReason};
use crate::types::{Location, RangeId};

/// How long an order may take: then no other split is begun.
pub(in crate::shard) const ORDER_TIMEOUT: Duration = Duration::from_secs(60);
/// Time limit of one split. Its leader waits for replicas that lag, but not as long as this.
pub(super) const SPLIT_TIMEOUT: Duration = Duration::from_secs(15);
/// Splits that are under way at once, of all orders.
const SPLITS_MAX: usize = 8;
/// How long the leader of the range that an order names may take until it can split the range. Before the
/// order begins, it could.
const OLD_RANGE_TIMEOUT: Duration = Duration::from_millis(1500);
/// The same for the ranges that the order makes: they elect a leader first, and are reported.
const NEW_RANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long coarse parts may take to be scattered. What is left is not begun then: balance does it later.
const SCATTER_TIMEOUT: Duration = Duration::from_secs(15);
/// Pause before it is asked again.
/// By time: what is waited for happens on other shards, which may refuse for a moment and report
/// later. Orders are few, so the looks cost little.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);
/// How long a split whose end is not known may take until a report tells that it was made.
const UNKNOWN_FATE_TIMEOUT: Duration = Duration::from_secs(2);

/// Into how many parts of about the same size an order splits a range.
const PARTS: RangeInclusive<u16> = 2..=SPLIT_KEYS_MAX as u16;

/// What the manager says of the next split of a range.
type Step = Result<(Location, ClusterRequest, bool), OrderError>;

/// Counts a split that is under way.
struct UnderWay<'a>(&'a Count);

impl<'a> UnderWay<'a> {
    async fn new(splits: &'a Count) -> UnderWay<'a> {
        splits.until(|number| number < SPLITS_MAX).await;
        splits.add(1);
        UnderWay(splits)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.subtract(1);
    }
}

impl<E: Env> ShardInner<E> {
    /// Splits a range at keys.
    pub(super) async fn split_by_order(
        self: &Rc<Self>,
        range: RangeId,
        keys: Vec<Vec<u8>>,
        held_until_ms: Option<u64>,
        reason: SplitReason,
    ) -> ClusterResponse {
        let now = E::now();
        let until = now + ORDER_TIMEOUT;
        let mut order = loop {
            let keys = keys.clone();
            let tried = E::now();
            let begun = self.of_manager(|manager| manager.begin_split(range, keys, tried));
            match begun {
                None => return self.not_here(),
                // A split that was ordered before has just ended, and is about to be reported.
                Some(Err(OrderError::Busy { .. } | OrderError::Conflict(_)))
                    if tried < now + OLD_RANGE_TIMEOUT =>
                {
                    E::Runtime::sleep(RETRY_INTERVAL).await;
                }
                Some(Err(why)) => return ClusterResponse::Refused(why),
                Some(Ok(order)) => break order,
            }
        };
        if !self.save_ids().await {
            return self.not_here();
        }
        if reason == SplitReason::Manual {
            self.of_manager(|manager| manager.begin_bulk(&mut order, E::now(), until));
        }
        let decision = self.note_split(range, keys.len(), reason);
        self.split_pieces(&mut order, reason, until).await;
        if order.is_coarse() {
            let parts = order.parts().iter().map(|part| part.range).collect();
            self.scatter_parts(parts).await;
        }
        if order.go_on() {
            self.split_pieces(&mut order, reason, until).await;
        }
        self.of_manager(|manager| manager.end_bulk(range));
        self.hold(&mut order, held_until_ms).await;
        let response = order.response();
        self.note_end(decision, &response);
        response
    }

    /// Makes the splits of an order, several at a time.
    async fn split_pieces(
        self: &Rc<Self>,
        order: &mut SplitOrder,
        reason: SplitReason,
        until: BootTime,
    ) {
        let mut under_way = FuturesUnordered::new();
        loop {
            while under_way.len() < SPLITS_MAX
                && let Some(piece) = order.next_piece()
            {
                under_way.push(self.split_piece(piece, reason, until));
            }
            let Some((piece, result)) = under_way.next().await else {
                return;
            };
            order.ended(piece, result);
        }
    }

    /// Has the coarse parts of a range spread over nodes and shards, and waits for it, but not for ever.
    async fn scatter_parts(self: &Rc<Self>, parts: Vec<RangeId>) {
        let until = E::now() + SCATTER_TIMEOUT;
        let is_over = || self.closing.get() || E::now() >= until;
        // A part that has just been made elects a leader first.
        let are_led = |manager: &mut Manager| {
            let now = E::now();
            let mut parts = parts.iter();
            parts.all(|part| manager.splittable(*part, now).is_ok())
        };
        while self.of_manager(are_led) == Some(false) && !is_over() {
            E::Runtime::sleep(RETRY_INTERVAL).await;
        }
        self.of_manager(|manager| {
            let is_part = |descriptor: &Descriptor| parts.contains(&descriptor.range);
            manager.scatter_those(is_part, E::now())
        });
        self.report_soon();
        let is_left = |manager: &mut Manager| manager.scattering(&parts) > 0;
        while self.of_manager(is_left) == Some(true) && !is_over() {
            E::Runtime::sleep(RETRY_INTERVAL).await;
        }
        self.of_manager(|manager| manager.stop_scattering(&parts));
    }

    /// Splits a range into parts of about the same size.
    pub(super) async fn split_into(
        self: &Rc<Self>,
        range: RangeId,
        parts: u32,
        held_until_ms: Option<u64>,
    ) -> ClusterResponse {
        let Some(parts) = u16::try_from(parts)
            .ok()
            .filter(|parts| PARTS.contains(parts))
        else {
            let (least, most) = PARTS.into_inner();
            let why = format!(
                "range {range} was to be split into {parts} parts; a range is split into {least} to {most}"
            );
            return ClusterResponse::Refused(OrderError::Invalid(why));
        };
        let found = self.ask_own_manager(|manager| {
            let found = manager.splittable(range, E::now());
            found.map(|(leader, report)| (leader, report.descriptor.epoch.version))
        });
        let (leader, version) = match found {
            Ok(found) => found,
            Err(refusal) => return *refusal,
        };
        let keys = match self.ask_split_keys((range, version), leader, parts).await {
            Ok(keys) => keys,
            Err(why) => return ClusterResponse::Refused(why),
        };
        if keys.len() + 1 < usize::from(parts) {
            let most = match keys.len() {
                0 => "it cannot be split by size at all".to_owned(),
                keys => format!("it can be split into {}", keys + 1),
            };
            let why = format!(
                "range {range} has too few keys to be split into {parts} parts of about the same size: {most}"
            );
            return ClusterResponse::Refused(OrderError::Conflict(why));
        }
        let reason = SplitReason::Manual;
        self.split_by_order(range, keys, held_until_ms, reason)
            .await
    }

    /// Splits a range at its next key. Gives the range back, and whether that is done.
    async fn split_piece(
        self: &Rc<Self>,
        mut piece: Piece,
        reason: SplitReason,
        until: BootTime,
    ) -> (Piece, Result<(), OrderError>) {
        let _under_way = UnderWay::new(&self.agent.bounds_orders.splits.under_way).await;
        let begun = E::now();
        let timeout = match piece.is_new {
            true => NEW_RANGE_TIMEOUT,
            false => OLD_RANGE_TIMEOUT,
        };
        let result = loop {
            let now = E::now();
            if now >= until {
                let limit = ORDER_TIMEOUT.as_secs();
                let why = format!("the order has taken {limit} s, as long as it may");
                break Err(OrderError::busy(why));
            }
            let result =
                match self.of_manager(|manager| manager.split_step(&mut piece, reason, now)) {
                    Some(step) => self.take_step(&piece, reason, step).await,
                    None => Err(OrderError::busy("another shard manages the cluster now")),
                };
            match result {
                // It may pass: the leader is another one, or has not reported yet.
                Err(OrderError::Busy { .. } | OrderError::Conflict(_))
                    if E::now() < begun + timeout => {}
                Err(OrderError::NotFound(_)) if piece.is_new && E::now() < begun + timeout => {}
                result => break result,
            }
            E::Runtime::sleep(RETRY_INTERVAL).await;
        };
        (piece, result)
    }

    /// Has the leader of a range split it.
    async fn take_step(
        self: &Rc<Self>,
        piece: &Piece,
        reason: SplitReason,
        step: Step,
    ) -> Result<(), OrderError> {
        let (at, request, has_new_ids) = step?;
        let (range, cut) = (piece.range, piece.cut());
        if has_new_ids && !self.save_ids().await {
            self.of_manager(|manager| manager.refused(range));
            return Err(OrderError::busy(
                "the ids of its replicas were not written down",
            ));
        }
        let response = match self.give_order(at, range, &request).await {
            ClusterResponse::Refused(why @ OrderError::Unknown(_)) => {
                match self.becomes_known(cut.child).await {
                    true => ClusterResponse::Done,
                    false => ClusterResponse::Refused(why),
                }
            }
            response => response,
        };
        match response {
            ClusterResponse::Done => {
                // Whoever looks after the answer finds the new range.
                self.becomes_known(cut.child).await;
                tracing::info!(
                    event = "range_split",
                    reason = reason.name(),
                    key = split::shown(&cut.key),
                    child = %cut.child,
                    "range {range} was split: the keys from {} on are in range {} now",
                    split::shown(&cut.key),
                    cut.child
                );
                Ok(())
            }
            ClusterResponse::Refused(why) => Err(why),
            _ => {
                let why = format!("shard {at}, which leads it, answered something else");
                Err(OrderError::Unknown(why))
            }
        }
    }

    /// Waits a moment until the leader of a range reports it.
    async fn becomes_known(&self, range: RangeId) -> bool {
        let until = E::now() + UNKNOWN_FATE_TIMEOUT;
        loop {
            match self.of_manager(|manager| manager.knows(range)) {
                Some(false) if E::now() < until => {}
                known => return known == Some(true),
            }
            E::Runtime::sleep(RETRY_INTERVAL).await;
        }
    }

    /// Holds the ranges that a split has made against merging.
    async fn hold(&self, order: &mut SplitOrder, until_ms: Option<u64>) {
        if !order.has_split() {
            return;
        }
        let parts = order.parts();
        let held = self.of_manager(|manager| manager.hold(&parts, until_ms));
        let written = match &held {
            Some(held) => self.write_held(held).await,
            None => Err(Fate::NotApplied),
        };
        if written.is_err() {
            let why = "the ranges were split, but it is not known whether they are held against \
                       merging: `rangedb range ls` shows it";
            order.fail(OrderError::Unknown(why.to_owned()));
        }
    }

    /// Has a range be no longer held against merging.
    pub(in crate::shard) async fn release(&self, range: RangeId) -> ClusterResponse {
        let held = match self.ask_own_manager(|manager| manager.release(range)) {
            Ok(held) => held,
            Err(refusal) => return *refusal,
        };
        match self.write_held(&[held]).await {
            Ok(()) => ClusterResponse::Done,
            Err(Fate::NotApplied) => self.not_here(),
            Err(Fate::Unknown) => {
                let why = format!(
                    "whether range {range} is released is not known; look, and give the order again"
                );
                ClusterResponse::Refused(OrderError::Unknown(why))
            }
        }
    }

    /// Writes down until when ranges are held, and has it be in force.
    async fn write_held(&self, held: &[HeldRecord]) -> Result<(), Fate> {
        let rows: Vec<Row> = held.iter().map(HeldRecord::row).collect();
        self.write_down(&rows).await?;
        self.of_manager(|manager| held.iter().for_each(|held| manager.held(*held)));
        Ok(())
    }

    /// Calls `look` with the manager; `None` if it is no longer here.
    pub(in crate::shard) fn of_manager<T>(
        &self,
        look: impl FnOnce(&mut Manager) -> T,
    ) -> Option<T> {
        self.agent.manager.borrow_mut().as_mut().map(look)
    }
}
