//! Reports of shards, for tests of the manager. A test states what each shard holds; only what has changed is
//! sent, as shards do it.

use std::collections::BTreeMap;

use super::manager::Manager;
use super::message::ClusterRequest;
use super::message::{ClusterResponse, Report, encode_request, encode_response};
use super::reporter::Reporter;
use crate::boot_time::BootTime;
use crate::types::Location;

/// The reporters of all shards.
#[derive(Default)]
pub(super) struct Reporters {
    of_shard: BTreeMap<Location, Reporter>,
    /// How many bytes all reports and answers would have taken between nodes.
    pub bytes: usize,
}

impl Reporters {
    /// The next report of a shard on which there is what `whole` says.
    pub fn next(&mut self, whole: Report, now: BootTime) -> Report {
        let mut report = whole;
        let reporter = self.of_shard.entry(report.from).or_default();
        let mut round = reporter.begin(now);
        for led in std::mem::take(&mut report.led) {
            round.lead(led.descriptor.range, |before| {
                (before != Some(&led)).then_some(led)
            });
        }
        for held in std::mem::take(&mut report.held) {
            round.hold(held);
        }
        round.end(&mut report);
        report
    }

    /// Has the manager take the report of a shard; gives its answer.
    pub fn send(
        &mut self,
        manager: &mut Manager,
        whole: &Report,
        is_there: bool,
        now: BootTime,
    ) -> ClusterResponse {
        loop {
            let report = self.next(whole.clone(), now);
            let (from, number) = (report.from, report.number);
            self.bytes += encode_request(&ClusterRequest::Report(report.clone())).len();
            let is_whole = report.since.is_none();
            let response = manager.take(report, is_there, now);
            self.bytes += encode_response(&response).len();
            if let ClusterResponse::Synced { wants_whole, .. } = response {
                let reporter = self.of_shard.entry(from).or_default();
                reporter.answered(number, wants_whole);
                if wants_whole {
                    assert!(!is_whole, "a whole report is always taken");
                    continue;
                }
            }
            return response;
        }
    }
}
