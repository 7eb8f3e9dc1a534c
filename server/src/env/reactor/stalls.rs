//! Stalls: one task kept the shard's thread from all others for too long.
//!
//! Every poll of a task is timed, by one look at the clock at its end. One that took [`STALL_MIN`] or
//! longer is counted under the task's name, which is the type of its future. At most one a second is
//! logged. The reason does not matter: much work, a system call that waited for the disk, or a
//! machine that ran something else meanwhile. Lives on the reactor's thread.

use std::any::type_name;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use rangedb_engine::boot_time::BootTime;
use rangedb_engine::distribution::Distribution;
use rangedb_engine::line_limit::LineLimit;

use super::Reactor;
use crate::env::clock;

/// A poll that takes this long is a stall.
pub(super) const STALL_MIN: Duration = Duration::from_millis(5);
/// Most microseconds of a stall in the histogram, a minute; longer ones count as this.
const MICROS_MAX: u64 = 60_000_000;

thread_local! {
    /// When the last task of this thread had run, or its sleep had ended.
    static SINCE: Cell<Option<BootTime>> = const { Cell::new(None) };
}

/// The stalls of one thread.
pub(super) struct Stalls {
    counts: RefCell<BTreeMap<&'static str, u64>>,
    micros: RefCell<Distribution>,
    lines: LineLimit,
}

impl Default for Stalls {
    fn default() -> Stalls {
        Stalls {
            counts: RefCell::default(),
            micros: RefCell::new(Distribution::new(MICROS_MAX)),
            lines: LineLimit::new(1, Duration::from_secs(1)),
        }
    }
}

/// Starts the measurement anew, because the thread begins or has slept.
pub(super) fn begin(now: BootTime) {
    SINCE.set(Some(now));
}

/// When the last task of this thread had run: the present time, but for what the executor did since.
pub(super) fn since() -> BootTime {
    SINCE.get().unwrap_or_else(clock::now)
}

/// Notes that the task of this name has run; gives the present time.
pub(super) fn ran(task: &'static str) -> BootTime {
    let now = clock::now();
    let since = SINCE.replace(Some(now));
    let took = since.map_or(Duration::ZERO, |since| now - since);
    if took >= STALL_MIN {
        Reactor::here().stalls.note(task, now, took);
    }
    now
}

impl Stalls {
    fn note(&self, task: &'static str, now: BootTime, took: Duration) {
        *self.counts.borrow_mut().entry(task).or_default() += 1;
        self.micros.borrow_mut().record(took.as_micros() as u64);
        let Some(unlogged) = self.lines.pass(now) else {
            return;
        };
        let (task, millis) = (short(task), took.as_millis() as u64);
        tracing::warn!(
            event = "stall",
            unlogged,
            "the task {task} held the shard's thread for {millis} ms"
        );
    }

    /// How long the stalls were, in microseconds.
    pub(super) fn micros(&self) -> Distribution {
        self.micros.borrow().clone()
    }

    /// How many stalls there were, by the name of the task.
    pub(super) fn counts(&self) -> Vec<(String, u64)> {
        let counts = self.counts.borrow();
        let mut named = BTreeMap::new();
        for (task, count) in counts.iter() {
            *named.entry(short(task)).or_default() += count;
        }
        named.into_iter().collect()
    }
}

/// The name of the task that runs a future.
pub(super) fn name_of<F>() -> &'static str {
    type_name::<F>()
}

/// A type's name without parameters, closures and the trait that it belongs to.
fn short(name: &str) -> String {
    let name = name.replace("::{{closure}}", "");
    let (mut parameters, mut is_trait) = (0, false);
    let mut short = String::new();
    for character in name.strip_prefix('<').unwrap_or(&name).chars() {
        match character {
            '<' => parameters += 1,
            '>' if parameters > 0 => parameters -= 1,
            // The end of a type that stands in brackets, perhaps with a trait.
            '>' => is_trait = false,
            ' ' => is_trait = true,
            _ if parameters > 0 || is_trait => {}
            _ => short.push(character),
        }
    }
    short.trim_start_matches("rangedb_").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_task_is_where_it_is_written() {
        for (full, name) in [
            (
                "rangedb_server::shard::report::{{closure}}",
                "server::shard::report",
            ),
            (
                "rangedb_engine::range::Proposer<a::B<c::D>>::run::{{closure}}",
                "engine::range::Proposer::run",
            ),
            (
                "<rangedb_engine::x::Foo<e::E> as core::Bar<u8>>::go::{{closure}}::{{closure}}",
                "engine::x::Foo::go",
            ),
            (
                "<openraft::core::Core<C, N>>::main::{{closure}}",
                "openraft::core::Core::main",
            ),
        ] {
            assert_eq!(short(full), name);
        }
    }
}
