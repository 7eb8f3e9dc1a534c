//! Makes a failing history small, so that a person can see what went wrong. Pure.
//!
//! It takes only steps that cannot turn a good history into a bad one: a read is dropped, or a
//! write loses its answer (and may then take effect at any time, or never). A history that still
//! fails after such a step fails for the original reason. When no step is left, writes without an
//! answer whose value no operation mentions are not shown: the rest fails with them and without
//! them.

use std::collections::{BTreeMap, BTreeSet};

use super::history::{Moment, Operation, ValueId};
use super::search::{OpId, Search, Stop};
use super::{EventKind, FailingHistory, Window, step};

/// Most configurations while a step is tried; beyond it the step is not taken, because writes
/// without an answer multiply the configurations.
const CONFIGURATIONS_MAX: usize = 1000;

type Operations = BTreeMap<OpId, Operation>;

/// The smallest failing history found in a window that fails as a whole.
pub(crate) fn shrink(window: &Window) -> FailingHistory {
    let mut operations = window.operations.clone();
    let reads = |all: &Operations| ids(all, |operation| operation.action.is_read());
    let answered = |all: &Operations| {
        ids(all, |operation| {
            !operation.action.is_read() && operation.returned.is_some()
        })
    };
    loop {
        let before = (operations.len(), answered(&operations).len());
        let candidates = reads(&operations);
        minimize(window, &mut operations, candidates, drop_read);
        let candidates = answered(&operations);
        minimize(window, &mut operations, candidates, forget_answer);
        if before == (operations.len(), answered(&operations).len()) {
            break;
        }
    }
    let all = window.operations.len();
    let mut shown: Vec<Operation> = (operations.values().copied())
        .filter(|operation| is_told_of(operation, &operations))
        .collect();
    shown.sort_by_key(|operation| (operation.invoked, operation.returned));
    let mut before: Vec<_> = window
        .base
        .iter()
        .map(|configuration| configuration.state)
        .collect();
    before.sort_unstable();
    before.dedup();
    let left_out = all - shown.len();
    FailingHistory {
        before,
        operations: shown,
        earlier: window.earlier,
        left_out,
    }
}

fn ids(operations: &Operations, wanted: impl Fn(&Operation) -> bool) -> Vec<OpId> {
    operations
        .iter()
        .filter(|(_, operation)| wanted(operation))
        .map(|(&id, _)| id)
        .collect()
}

fn drop_read(operations: &mut Operations, id: OpId) {
    operations.remove(&id);
}

fn forget_answer(operations: &mut Operations, id: OpId) {
    if let Some(operation) = operations.get_mut(&id) {
        operation.returned = None;
        operation.action = operation.action.forget_answer();
    }
}

/// Whether an operation has an answer, or an operation with an answer mentions what it wrote.
fn is_told_of(operation: &Operation, operations: &Operations) -> bool {
    let written = operation.action.written();
    let speaks_of_it =
        |other: &Operation| other.returned.is_some() && other.action.observed() == written;
    operation.returned.is_some() || (written.is_some() && operations.values().any(speaks_of_it))
}

/// Takes the step for as many candidates as possible while the history still fails: first for large
/// pieces at once, then for smaller and smaller ones.
fn minimize(
    window: &Window,
    operations: &mut Operations,
    mut candidates: Vec<OpId>,
    take_step: fn(&mut Operations, OpId),
) {
    let mut piece = candidates.len();
    while piece > 0 {
        let mut left = Vec::new();
        for chunk in candidates.chunks(piece) {
            let mut smaller = operations.clone();
            chunk.iter().for_each(|&id| take_step(&mut smaller, id));
            if fails(window, &smaller) {
                *operations = smaller;
            } else {
                left.extend_from_slice(chunk);
            }
        }
        candidates = left;
        piece = if piece > candidates.len() {
            candidates.len()
        } else {
            piece / 2
        };
    }
}

/// Whether the operations, after the start of the window, are certainly not linearizable.
fn fails(window: &Window, operations: &Operations) -> bool {
    let mut events: Vec<(Moment, EventKind, OpId)> = Vec::new();
    let answered = || {
        operations
            .values()
            .filter(|operation| operation.returned.is_some())
    };
    // A write without an answer helps only operations that mention its value, or any value.
    let any_value_helps = answered().any(|operation| operation.action.fits_any_other_value());
    let observed: BTreeSet<ValueId> = operations
        .values()
        .filter_map(|operation| operation.action.observed())
        .collect();
    for (&id, operation) in operations {
        let is_useless = operation.returned.is_none()
            && !any_value_helps
            && operation
                .action
                .written()
                .is_some_and(|value| !observed.contains(&value));
        if is_useless {
            continue;
        }
        events.push((operation.invoked, EventKind::Sent, id));
        events.extend(
            operation
                .returned
                .map(|returned| (returned, EventKind::Returned, id)),
        );
    }
    events.sort_unstable();
    let mut search = Search::new(window.base.clone(), CONFIGURATIONS_MAX);
    for (_, kind, id) in events {
        match step(&mut search, kind, id, &operations[&id]) {
            Ok(()) => {}
            Err(Stop::NotLinearizable) => return true,
            Err(Stop::Undecided) => return false,
        }
    }
    false
}
