//! How the manager takes reports ([`crate::cluster::message::report`]). No I/O here.
//!
//! The manager keeps what each shard has reported ([`super::known_shards`]), and an incomplete report changes
//! it. The manager takes such a report only if it continues one that it has taken; otherwise it asks the
//! shard for a complete one.
//!
//! A range that a report does not name is unchanged and still led by the shard, so what its leader has said
//! is as fresh as the shard's last report. With each report the manager also looks again at those of the
//! shard's ranges in which something is under way, that carry load, or that wait for something
//! ([`Manager::is_restless`]), because for these the passing of time matters. All others cost nothing.

use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

use super::bounds::COLD_CPU_MILLIS;
use super::known_shards::{KnownShard, Membership};
use super::{KnownNode, KnownRange, LeaderReport, Manager, PAST_LIVES};
use crate::boot_time::BootTime;
use crate::cluster::message::{ClusterResponse, HighestIds, LedRange, Report};
use crate::cluster::record::{MembershipStatus, NodeRecord, RangeRecord};
use crate::mutant::{self, Mutant};
use crate::range::Descriptor;
use crate::types::{Location, RangeId, ReplicaId};

impl Manager {
    /// Takes a shard's report. `is_there`: its node was reached at the address that it claims. If
    /// not, the node keeps its old address, and a new node is not part of the cluster yet.
    pub fn take(&mut self, report: Report, is_there: bool, now: BootTime) -> ClusterResponse {
        self.ids.raise(report.highest);
        self.ids.raise(HighestIds {
            node: report.node.id.max(report.from.node),
            ..HighestIds::default()
        });
        if self.membership(report.node.id) == MembershipStatus::Removed {
            return ClusterResponse::Removed;
        }
        let view = self.published.news(report.known);
        let synced = |view, superseded, wants_whole| ClusterResponse::Synced {
            view,
            remove: Vec::new(),
            superseded,
            unmet: !is_there,
            wants_whole,
        };
        let mut record = report.node.clone();
        match self.nodes.get(&record.id) {
            _ if is_there => {}
            Some(known) => record.address.clone_from(&known.record.address),
            None => return synced(view, None, false),
        }
        if let Some(superseded) = self.take_node(record, now) {
            return synced(None, Some(superseded), false);
        }
        if !self.goes_on(&report) {
            return synced(view, None, true);
        }
        self.health.take_peers(report.from.node, &report.peers, now);
        let from = report.from;
        let due = self.take_shard(report, now);
        self.take_presence(from, now);
        for led in &due {
            self.take_range(from, led.clone(), now);
        }
        for led in due {
            let (range, is_restless) = (led.descriptor.range, self.is_restless(&led));
            if let Some(shard) = self.shards.known.get_mut(&from) {
                match is_restless {
                    true => shard.restless.insert(range),
                    false => shard.restless.remove(&range),
                };
            }
        }
        ClusterResponse::Synced {
            remove: self.superfluous(from, now),
            view,
            superseded: None,
            unmet: !is_there,
            wants_whole: false,
        }
    }

    /// Whether all is known on which a report goes on.
    fn goes_on(&self, report: &Report) -> bool {
        let Some(since) = report.since else {
            return true;
        };
        let known = self.shards.known.get(&report.from);
        let known = known.filter(|known| known.incarnation == report.node.incarnation);
        known.is_some_and(|known| since <= known.number && known.number < report.number)
            || mutant::is(Mutant::ChangeAfterLostReport)
    }

    /// Takes what a report says of its shard. Gives the ranges that must be looked at: a right part of a
    /// range that was split comes before the left one, so that no key is missed in between.
    fn take_shard(&mut self, report: Report, now: BootTime) -> Vec<Rc<LedRange>> {
        let (from, incarnation) = (report.from, report.node.incarnation);
        let mut report = report;
        let led = std::mem::take(&mut report.led);
        let mut due: Vec<Rc<LedRange>> = led.into_iter().map(Rc::new).collect();
        let shard = self.shards.known.entry(from);
        let shard = shard.or_insert_with(|| KnownShard::new(incarnation, now));
        let (heard, left) = (shard.heard, shard.take(&report, &due));
        (shard.incarnation, shard.number, shard.heard) = (incarnation, report.number, now);
        shard.in_flight = report.in_flight;
        shard.slow_disk = report.slow_disk;
        shard.unreadable.clone_from(&report.unreadable);
        shard.stats = report.stats;
        let named: BTreeSet<RangeId> = due.iter().map(|led| led.descriptor.range).collect();
        let restless = shard.restless.difference(&named);
        due.extend(restless.filter_map(|range| shard.led.get(range).cloned()));
        due.sort_by(|one, other| other.descriptor.keys.start.cmp(&one.descriptor.keys.start));
        for range in left {
            if let Some(known) = self.ranges.get_mut(&range)
                && let Some(report) = &mut known.report
                && report.from == Some(from)
            {
                (report.from, report.at) = (None, heard);
            }
        }
        due
    }

    /// Takes which replicas a shard has of those that it should have.
    fn take_presence(&mut self, at: Location, now: BootTime) {
        let Some(shard) = self.shards.known.get_mut(&at) else {
            return;
        };
        let (records, health) = (self.shards.records, &mut self.health);
        if let Some(known) = &shard.membership
            && known.records == records
        {
            for (range, replica) in &known.absent {
                health.take_presence(*range, *replica, false, now);
            }
            return;
        }
        let mut absent = Vec::new();
        for known in self.ranges.values() {
            let descriptor = &known.record.descriptor;
            let mut members = descriptor.replicas.iter();
            if let Some(member) = members.find(|place| place.location == at) {
                let (range, replica) = (descriptor.range, member.replica);
                let is_there = shard.has(range, replica);
                health.take_presence(range, replica, is_there, now);
                absent.extend((!is_there).then_some((range, replica)));
            }
        }
        let is_member = |range: RangeId, replica: ReplicaId| {
            let known = self.ranges.get(&range);
            known.is_some_and(|known| known.record.descriptor.location(replica).is_some())
        };
        let doubtful = shard.held.values();
        let doubtful = doubtful
            .filter(|held| held.bounds.is_some() || !is_member(held.range, held.replica))
            .map(|held| held.range);
        let led = shard.led.iter();
        let led = led.filter(|(range, led)| !is_member(**range, led.leader));
        let doubtful = doubtful.chain(led.map(|(range, _)| *range)).collect();
        shard.membership = Some(Membership {
            records,
            absent,
            doubtful,
        });
    }

    /// The replicas of a shard that are no longer members.
    fn superfluous(&self, at: Location, now: BootTime) -> Vec<(RangeId, ReplicaId)> {
        let Some(shard) = self.shards.known.get(&at) else {
            return Vec::new();
        };
        let doubtful = || shard.membership.iter().flat_map(|found| &found.doubtful);
        // A replica that is left may lead: its left neighbour here was removed before it applied the merge, or it
        // was cut off while its range moved, and no member has anything to say to it.
        let led = doubtful().filter_map(|range| shard.led.get(range));
        let led = led.filter(|led| {
            let descriptor = &led.descriptor;
            let bounds = (&*descriptor.keys.start, descriptor.epoch.version);
            self.is_merged(descriptor.range, bounds)
                || self.has_left(descriptor.range, led.leader, descriptor.epoch.conf)
        });
        let held = doubtful().filter_map(|range| shard.held.get(range));
        let held = held.filter(|held| {
            if let Some((start, version)) = &held.bounds
                && self.is_merged(held.range, (start, *version))
            {
                return true;
            }
            self.has_left(held.range, held.replica, held.conf)
                || self.ranges.get(&held.range).is_some_and(|known| {
                    let listed = known.record.descriptor.location(held.replica).is_some();
                    // During a change of members, a replica may be about to become a member.
                    !listed && (held.is_empty || held.left) && self.is_quiet(known, now)
                })
        });
        let held = held.map(|held| (held.range, held.replica));
        led.map(|led| (led.descriptor.range, led.leader))
            .chain(held)
            .collect()
    }

    /// Whether a replica is no member of its range by members that are newer than those it knows.
    fn has_left(&self, range: RangeId, replica: ReplicaId, conf: u32) -> bool {
        self.ranges.get(&range).is_some_and(|known| {
            let descriptor = &known.record.descriptor;
            descriptor.epoch.conf > conf && descriptor.location(replica).is_none()
        })
    }

    /// Whether a range must be looked at again though its leader reports nothing new of it: see the module's
    /// chapter.
    fn is_restless(&self, led: &Rc<LedRange>) -> bool {
        let range = led.descriptor.range;
        let Some(known) = self.ranges.get(&range) else {
            return true;
        };
        let report = known.report.as_ref();
        let is_taken = report.is_some_and(|report| Rc::ptr_eq(&report.led, led));
        !is_taken
            || known.record.descriptor != led.descriptor
            || !led.is_calm()
            || led.stats.cpu_millis_per_second >= COLD_CPU_MILLIS
            || known.ordered.is_some()
            || known.watch.load.is_some()
            || self.planning.kind_of(range).is_some()
            || self.moves.has(range)
    }

    /// Has a range looked at with the next report of the shard that leads it.
    pub(in crate::cluster) fn watch(&mut self, range: RangeId) {
        let report = self
            .ranges
            .get(&range)
            .and_then(|known| known.report.as_ref());
        let from = report.and_then(|report| report.from);
        if let Some(shard) = from.and_then(|from| self.shards.known.get_mut(&from)) {
            shard.restless.insert(range);
        }
    }

    /// Takes a node's record. If another process has taken the node's id, gives the number of that
    /// process's starts. The process whose folder was started more often stays: one with fewer
    /// starts, or on another copy, lacks what the node has acknowledged since. Of two processes
    /// whose starts could not be counted, the later one stays. Clocks play no part.
    fn take_node(&mut self, record: NodeRecord, now: BootTime) -> Option<u64> {
        let Some(known) = self.nodes.get_mut(&record.id) else {
            let known = KnownNode {
                heard: now,
                saved: false,
                past: VecDeque::new(),
                departure: None,
                record,
            };
            self.nodes.insert(known.record.id, known);
            return None;
        };
        let is_past = known.past.contains(&record.incarnation);
        if is_past || NodeRecord::is_older(record.incarnation, known.record.incarnation) {
            return Some(known.record.starts());
        }
        known.heard = now;
        if known.record.incarnation != record.incarnation {
            known.past.truncate(PAST_LIVES - 1);
            known.past.push_front(known.record.incarnation);
        }
        if known.record != record {
            // What shards reported that no longer exist holds nothing up.
            let (node, shards) = (record.id, record.shards);
            let all = &mut self.shards.known;
            all.retain(|at, _| at.node != node || at.shard.0 < shards);
            known.record = record;
            known.saved = false;
        }
        None
    }

    /// Takes what a shard reports of a range that it leads.
    fn take_range(&mut self, from: Location, led: Rc<LedRange>, now: BootTime) {
        let mut seen = HighestIds::default();
        seen.see(&led.descriptor);
        self.ids.raise(seen);
        let range = led.descriptor.range;
        if let Some(known) = self.ranges.get(&range) {
            let newest = known.report.as_ref().map_or(0, |report| report.led.term);
            let epoch = |of: &Descriptor| (of.epoch.version, of.epoch.conf);
            if led.term < newest || epoch(&led.descriptor) < epoch(&known.record.descriptor) {
                return;
            }
        }
        let Some(descriptor) = self.with_bounds(&led.descriptor, now) else {
            return;
        };
        self.set_bounds(&descriptor);
        let born_ms = match self.ranges.get(&range) {
            Some(known) => known.record.born_ms,
            None => self.planning.decisions.wall_ms(now),
        };
        let record = RangeRecord {
            descriptor,
            voters: led.voters.clone(),
            born_ms,
        };
        let known = self.ranges.entry(range);
        let records = &mut self.shards.records;
        let known = known.or_insert_with(|| {
            *records += 1;
            KnownRange::new(record.clone(), false, now)
        });
        let version = record.descriptor.epoch.version;
        known
            .rest
            .take(version, led.stats.cpu_millis_per_second, now);
        if known.record != record {
            known.record = record;
            known.saved = false;
            self.shards.records += 1;
        }
        let ordered = known.ordered.as_ref();
        let is_reached = ordered.is_some_and(|(_, goal)| goal.is_reached(&led));
        if is_reached {
            known.ordered = None;
        }
        self.moves.take_range(&led, now);
        let (descriptor, followers) = (&known.record.descriptor, &led.followers);
        self.health
            .take_followers(descriptor, led.leader, followers, now);
        let version = descriptor.epoch.version;
        known
            .watch
            .take(version, led.stats.cpu_millis_per_second, now);
        known
            .load
            .take(version, from, led.stats.cpu_millis_per_second, now);
        known.report = Some(LeaderReport {
            from: Some(from),
            at: now,
            led,
        });
        self.follow(range, is_reached, now);
    }
}
