//! The scenario in which the manager splits a range because of its load.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::request::Batch;
use rangedb_engine::types::{Blob, RangeId};

use super::{BESIDE, EFFORT, machine};
use crate::sim::cluster::Look;
use crate::sim::executor::{self, OUTSIDE};
use crate::sim::faults::Order;
use crate::sim::operator;
use crate::sim::run::{POLL_INTERVAL, Story};
use crate::sim::runtime::SimRuntime;
use crate::sim::world;

/// What each piece of work counts as, in microseconds: the writes of [`Story::keep_hot`] take several cores.
const WORK_MICROS: u64 = 16_000;
/// How many rows are written, how many of them at once, and the pause after that.
const ROWS: usize = 24;
const ROWS_AT_ONCE: usize = 8;
const PAUSE: Duration = Duration::from_millis(5);
/// How many times [`PATIENCE`](super::PATIENCE) it may take until a part is split off: the load has to last.
const PATIENCES: usize = 2;

/// How much is written to each range of users, in bytes a second. The replica that leads it knows.
fn written(looks: &[Look]) -> BTreeMap<RangeId, u64> {
    let mut written = BTreeMap::new();
    for look in looks.iter().filter(|look| !look.status.system) {
        let rate = look.status.load.written_bytes_per_second;
        let of_range = written.entry(look.status.route.range).or_insert(rate);
        *of_range = rate.max(*of_range);
    }
    written
}

/// The machines that lead the ranges of users.
fn leaders(looks: &[Look]) -> BTreeMap<RangeId, u16> {
    let led = looks
        .iter()
        .filter(|look| !look.status.system && look.status.leads);
    led.map(|look| (look.status.route.range, machine(look)))
        .collect()
}

impl Story {
    /// Writes rows from [`BESIDE`] on, in turn, until `stop` is set.
    fn keep_hot(self: &Rc<Story>, stop: &Rc<Cell<bool>>) {
        let (story, stop) = (self.clone(), stop.clone());
        executor::current().spawn_on(OUTSIDE, async move {
            let client = story.client(100, &stop);
            let mut first = 0;
            while !stop.get() {
                let writes = (first..first + ROWS_AT_ONCE).map(|row| {
                    let key = Blob::from(format!("d{row:02}"));
                    let write = Batch::put(key.clone(), "x".repeat(250).into());
                    let client = client.clone();
                    async move { client.write(&key, write, EFFORT).await.is_ok() }
                });
                join_all(writes).await;
                first = (first + ROWS_AT_ONCE) % ROWS;
                SimRuntime::sleep(PAUSE).await;
            }
        });
    }

    pub(super) async fn hot_range(self: &Rc<Story>) {
        let set = async |name, value| {
            let order = Order::Set { name, value };
            operator::order(&self.cluster, order, 1).await
        };
        let is_set = set("split-by-load-after", "1s").await;
        let Some((leader, range)) = self.leader_of(&BESIDE).await else {
            return;
        };
        world::set_work_takes(WORK_MICROS);
        let stop = Rc::default();
        self.keep_hot(&stop);
        let before = Cell::new(0);
        let is_split = |looks: &[Look]| {
            let written = written(looks);
            if let Some(rate) = written.get(&range).filter(|_| written.len() == 1) {
                before.set(*rate);
            }
            written.len() > 1
        };
        let mut was_split = false;
        for _ in 0..PATIENCES {
            was_split = was_split || self.until(POLL_INTERVAL, is_split).await;
        }
        let after: u64 = written(&self.cluster.looks()).values().sum();
        // A load is not forgotten because a border was drawn.
        let is_known = before.get() > 0 && after >= before.get() / 2;
        let is_led_elsewhere =
            |looks: &[Look]| leaders(looks).values().any(|other| *other != leader);
        let has_moved = self.until(POLL_INTERVAL, is_led_elsewhere).await;
        stop.set(true);
        world::set_work_takes(0);
        let is_off = set("split-by-load", "off").await;
        if !is_set || !was_split || !is_known || !has_moved || !is_off {
            self.seen.violation(format!(
                "range {range} is hot: settings: {is_set}, {is_off}; split: {was_split}; written before and right \
                 after it: {before:?}, {after} bytes a second; a part is led elsewhere: {has_moved}"
            ));
        }
    }
}
