//! The present pass of a thread over its tasks that are ready: how long it has taken, how much of it tasks
//! that can stop have used, and whose turn it is.
//!
//! What arrives during a pass waits for its end, and whatever takes several steps takes several passes. So
//! a pass should be short, however many tasks have much to do. Such a task asks for a turn
//! ([`wait_for_turn`]) instead of waking itself: in each pass [`TURNS`] of those that wait are woken, first
//! come, first served. A task that was idle until now need not wait behind them: it may use one of the
//! pass's few [`FIRST_STEPS`], as a new flow in fair queueing (fq_codel) goes before the old ones.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::task::Waker;
use std::time::Duration;

use rangedb_engine::env::Instant;

use crate::env::BootInstant;

/// How many tasks that wait for a turn are woken in a pass.
const TURNS: usize = 8;
/// How many tasks that were idle may do something at once in a pass that has become long.
const FIRST_STEPS: usize = 8;

thread_local! {
    /// The present pass.
    static PASS: Cell<Option<Pass>> = const { Cell::new(None) };
    static WAITING: RefCell<Waiting> = const { RefCell::new(Waiting::new()) };
}

#[derive(Clone, Copy)]
struct Pass {
    began: BootInstant,
    /// For how long tasks that can stop have worked in it.
    worked: Duration,
    /// How many first steps are left.
    first_steps: usize,
}

/// The tasks that wait for a turn, the first one in front.
struct Waiting {
    tasks: VecDeque<Waker>,
    /// How many turns were given so far.
    given: u64,
}

impl Waiting {
    const fn new() -> Waiting {
        Waiting {
            tasks: VecDeque::new(),
            given: 0,
        }
    }
}

/// A place among the tasks that wait for a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn(u64);

impl Turn {
    /// Whether it has come.
    pub fn has_come(self) -> bool {
        WAITING.with_borrow(|waiting| waiting.given > self.0)
    }
}

/// Has a task woken when its turn comes.
pub fn wait_for_turn(task: &Waker) -> Turn {
    WAITING.with_borrow_mut(|waiting| {
        let turn = Turn(waiting.given + waiting.tasks.len() as u64);
        waiting.tasks.push_back(task.clone());
        turn
    })
}

/// Adds the tasks whose turn it is in the next pass.
pub(super) fn give_turns(woken: &mut Vec<Waker>) {
    WAITING.with_borrow_mut(|waiting| {
        let count = waiting.tasks.len().min(TURNS);
        woken.extend(waiting.tasks.drain(..count));
        waiting.given += count as u64;
    });
}

/// Begins a pass.
pub(super) fn begin(now: BootInstant) {
    PASS.set(Some(Pass {
        began: now,
        worked: Duration::ZERO,
        first_steps: FIRST_STEPS,
    }));
}

/// How long the present pass over the tasks that are ready has taken until `now`. What has arrived since
/// it began waits for its end.
pub fn pass_has_taken(now: BootInstant) -> Duration {
    PASS.get().map_or(Duration::ZERO, |pass| {
        now.saturating_duration_since(pass.began)
    })
}

/// Takes one of the first steps that the present pass has for tasks that were idle; false if none is left.
pub fn take_first_step() -> bool {
    let Some(mut pass) = PASS.get() else {
        return true;
    };
    let Some(left) = pass.first_steps.checked_sub(1) else {
        return false;
    };
    pass.first_steps = left;
    PASS.set(Some(pass));
    true
}

/// For how long the tasks that can stop have worked in the present pass.
pub fn worked_in_pass() -> Duration {
    PASS.get().map_or(Duration::ZERO, |pass| pass.worked)
}

/// Notes that a task that can stop has worked for this long.
pub fn has_worked(time: Duration) {
    PASS.set(PASS.get().map(|pass| Pass {
        worked: pass.worked + time,
        ..pass
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_come_in_order_a_few_in_each_pass() {
        let task = Waker::noop();
        let turns: Vec<Turn> = (0..TURNS * 2 + 1).map(|_| wait_for_turn(task)).collect();
        let come = || turns.iter().filter(|turn| turn.has_come()).count();
        let mut woken = Vec::new();
        for expected in [TURNS, TURNS * 2, TURNS * 2 + 1] {
            assert!(!turns[expected - 1].has_come());
            give_turns(&mut woken);
            assert_eq!((come(), woken.len()), (expected, expected));
            assert!(turns[..expected].iter().all(|turn| turn.has_come()));
        }
        give_turns(&mut woken);
        assert_eq!(woken.len(), turns.len());
        let next = wait_for_turn(task);
        assert!(
            !next.has_come(),
            "those that were given before do not count"
        );
        give_turns(&mut woken);
        assert!(next.has_come());
    }

    #[test]
    fn each_pass_has_a_few_first_steps() {
        for _ in 0..2 {
            begin(BootInstant::now());
            assert!((0..FIRST_STEPS).all(|_| take_first_step()));
            assert!(!take_first_step());
        }
    }
}
