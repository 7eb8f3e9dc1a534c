//! Histories that must be accepted, histories that must be rejected, and a slow exact checker that
//! the fast one is held to.

use proptest::prelude::*;

use super::history::{Action, Expected, Moment, Operation, RegisterState};
use super::{FailingHistory, check_key};

fn at(invoked: Moment, returned: Moment, action: Action) -> Operation {
    Operation {
        client: 0,
        action,
        invoked,
        returned: Some(returned),
    }
}

fn unknown(invoked: Moment, action: Action) -> Operation {
    Operation {
        client: 0,
        action,
        invoked,
        returned: None,
    }
}

fn get(found: RegisterState) -> Action {
    Action::Get { found }
}

fn put(value: u64) -> Action {
    Action::Put { value }
}

fn delete(existed: bool) -> Action {
    Action::Delete {
        existed: Some(existed),
    }
}

fn cas(expected: Expected, new: RegisterState, swapped: bool) -> Action {
    Action::CompareAndSwap {
        expected,
        new,
        swapped: Some(swapped),
    }
}

fn accept(operations: &[Operation]) {
    if let Err(failing) = check_key(None, operations) {
        panic!("rejected: {}", failing.expect("decided"));
    }
}

fn reject(operations: &[Operation]) -> FailingHistory {
    *check_key(None, operations)
        .expect_err("accepted")
        .expect("decided")
}

#[test]
fn sequential_history_is_accepted() {
    accept(&[
        at(0, 1, get(None)),
        at(2, 3, put(1)),
        at(4, 5, get(Some(1))),
        at(6, 7, cas(Expected::Value(1), Some(2), true)),
        at(8, 9, cas(Expected::Value(1), Some(3), false)),
        at(10, 11, delete(true)),
        at(12, 13, delete(false)),
        at(14, 15, cas(Expected::Absent, Some(4), true)),
        at(16, 17, get(Some(4))),
    ]);
}

#[test]
fn concurrent_reads_may_see_a_write_in_either_order_of_overlap() {
    accept(&[
        at(0, 10, put(1)),
        at(1, 3, get(None)),
        at(4, 6, get(Some(1))),
    ]);
    // But not go back once it was seen.
    reject(&[
        at(0, 10, put(1)),
        at(1, 3, get(Some(1))),
        at(4, 6, get(None)),
    ]);
}

#[test]
fn stale_read_is_rejected() {
    let failing = reject(&[at(0, 1, put(1)), at(2, 3, put(2)), at(4, 5, get(Some(1)))]);
    assert_eq!(failing.operations.len(), 3, "{failing}");
}

#[test]
fn lost_write_is_rejected() {
    reject(&[at(0, 1, put(1)), at(2, 3, get(None))]);
}

#[test]
fn lost_update_is_rejected() {
    // Two compare-and-swaps from the same value cannot both succeed.
    reject(&[
        at(0, 1, put(1)),
        at(2, 8, cas(Expected::Value(1), Some(2), true)),
        at(3, 9, cas(Expected::Value(1), Some(3), true)),
    ]);
}

#[test]
fn resurrected_delete_is_rejected() {
    reject(&[
        at(0, 1, put(1)),
        at(2, 3, delete(true)),
        at(4, 5, get(Some(1))),
    ]);
}

#[test]
fn value_from_nowhere_is_rejected() {
    let failing = reject(&[at(0, 1, put(1)), at(2, 3, get(Some(77)))]);
    assert_eq!(failing.operations, [at(2, 3, get(Some(77)))]);
}

#[test]
fn wrong_answers_of_conditional_writes_are_rejected() {
    reject(&[at(0, 1, delete(true))]);
    reject(&[at(0, 1, put(1)), at(2, 3, delete(false))]);
    reject(&[
        at(0, 1, put(1)),
        at(2, 3, cas(Expected::Absent, Some(2), true)),
    ]);
    reject(&[
        at(0, 1, put(1)),
        at(2, 3, cas(Expected::Value(1), Some(2), false)),
    ]);
}

#[test]
fn unknown_write_may_never_apply_or_apply_late() {
    accept(&[
        unknown(0, put(1)),
        at(2, 3, get(None)),
        at(90, 91, get(None)),
    ]);
    accept(&[
        unknown(0, put(1)),
        at(2, 3, put(2)),
        at(4, 5, get(Some(2))),
        at(90, 91, get(Some(1))),
    ]);
    // Not before it was sent, and not twice.
    reject(&[at(0, 1, get(Some(1))), unknown(2, put(1))]);
    reject(&[
        unknown(0, put(1)),
        at(2, 3, get(Some(1))),
        at(4, 5, put(2)),
        at(6, 7, get(Some(2))),
        at(8, 9, get(Some(1))),
    ]);
}

#[test]
fn unknown_writes_explain_answers_together() {
    // The second one's condition holds only after the first.
    accept(&[
        unknown(0, put(1)),
        unknown(
            1,
            Action::CompareAndSwap {
                expected: Expected::Value(1),
                new: Some(2),
                swapped: None,
            },
        ),
        at(5, 6, get(Some(2))),
    ]);
    accept(&[
        at(0, 1, put(1)),
        unknown(2, Action::Delete { existed: None }),
        at(5, 6, get(None)),
    ]);
    accept(&[
        unknown(0, put(1)),
        at(5, 6, delete(true)),
        at(7, 8, get(None)),
    ]);
}

#[test]
fn long_history_with_many_unknown_writes_is_decided() {
    let mut operations = Vec::new();
    for i in 0..20_000u64 {
        let start = i * 10;
        match i % 100 {
            0 => operations.push(unknown(start, put(1_000_000 + i))),
            1 => operations.push(at(start, start + 15, delete(true))),
            2 => operations.push(at(start + 6, start + 9, delete(false))),
            _ => {
                operations.push(at(start, start + 5, put(i)));
                operations.push(at(start + 6, start + 9, get(Some(i))));
            }
        }
    }
    accept(&operations);
    operations.push(at(200_000, 200_001, get(Some(50))));
    let failing = reject(&operations);
    assert!(failing.operations.len() <= 2, "{failing}");
    assert!(failing.earlier > 0);
}

/// Tries every order of every choice of operations.
fn is_linearizable(state: RegisterState, operations: &[Operation]) -> bool {
    let Some(first_return) = operations.iter().filter_map(|o| o.returned).min() else {
        return true;
    };
    (0..operations.len()).any(|index| {
        let next = operations[index];
        if next.invoked > first_return {
            return false;
        }
        let action = if next.returned.is_none() {
            next.action.forget_answer()
        } else {
            next.action
        };
        let mut rest = operations.to_vec();
        rest.remove(index);
        action
            .apply(state)
            .is_some_and(|state| is_linearizable(state, &rest))
    })
}

fn arbitrary_action() -> impl Strategy<Value = Action> {
    let value = 0..4u64;
    let state = proptest::option::of(0..4u64);
    let expected = proptest::option::of(0..4u64).prop_map(|expected| match expected {
        Some(value) => Expected::Value(value),
        None => Expected::Absent,
    });
    prop_oneof![
        3 => state.clone().prop_map(get),
        3 => value.prop_map(put),
        1 => any::<bool>().prop_map(delete),
        2 => (expected, state, any::<bool>()).prop_map(|(expected, new, done)| cas(expected, new, done)),
    ]
}

fn arbitrary_operation() -> impl Strategy<Value = Operation> {
    (arbitrary_action(), 0..30u64, 0..12u64, 0..5u8).prop_map(|(action, invoked, length, fate)| {
        let is_known = fate > 0 || action.is_read();
        let returned = is_known.then_some(invoked + length);
        Operation {
            client: 0,
            action,
            invoked,
            returned,
        }
    })
}

/// A register that applies operations one after another, each at a moment within its interval.
fn good_history() -> impl Strategy<Value = Vec<Operation>> {
    let step = (arbitrary_action(), 0..25u64, 0..25u64, 0..24u8);
    proptest::collection::vec(step, 1..300).prop_map(|steps| {
        let mut state = None;
        let mut operations = Vec::new();
        for (index, (action, before, after, fate)) in steps.into_iter().enumerate() {
            let moment = 100 + 10 * index as u64;
            let value = index as u64;
            // Written values are new ones; conditions and answers are what the register says.
            let action = match action {
                Action::Get { .. } => get(state),
                Action::Put { .. } => put(value),
                Action::Delete { .. } => delete(state.is_some()),
                Action::CompareAndSwap {
                    expected,
                    new,
                    swapped,
                } => {
                    let expected = match (swapped, state) {
                        (Some(true), None) => Expected::Absent,
                        (Some(true), Some(value)) => Expected::Value(value),
                        _ => expected,
                    };
                    let new = new.map(|_| value);
                    let holds = cas(expected, new, true).apply(state).is_some();
                    cas(expected, new, holds)
                }
            };
            let mut operation = at(moment - before, moment + after, action);
            if fate < 2 && !action.is_read() {
                operation = unknown(moment - before, action);
            }
            // A write of unknown fate takes effect only sometimes.
            if fate > 0 {
                state = action
                    .apply(state)
                    .expect("the answer is the register's own");
            }
            operations.push(operation);
        }
        operations
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn agrees_with_trying_every_order(operations in proptest::collection::vec(arbitrary_operation(), 1..8)) {
        match check_key(None, &operations) {
            Ok(()) => prop_assert!(is_linearizable(None, &operations), "wrongly accepted"),
            Err(_) => prop_assert!(!is_linearizable(None, &operations), "wrongly rejected"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() })]

    #[test]
    fn accepts_what_a_register_did(operations in good_history()) {
        accept(&operations);
    }

    #[test]
    fn rejects_a_read_of_what_was_overwritten(operations in good_history(), pick in any::<prop::sample::Index>()) {
        // A read after everything answered, of a value whose overwriting was seen before.
        let end = operations.iter().filter_map(|o| o.returned).max().unwrap_or(0).max(10_000) + 1;
        let written: Vec<u64> = operations.iter()
            .filter(|o| o.returned.is_some())
            .filter_map(|o| o.action.written())
            .collect();
        prop_assume!(!written.is_empty());
        let stale = written[pick.index(written.len())];
        let mut bad = operations.clone();
        bad.push(at(end, end + 1, put(1_000_000)));
        bad.push(at(end + 2, end + 3, get(Some(stale))));
        let failing = reject(&bad);
        prop_assert!(failing.operations.len() <= 6, "{}", failing);
    }
}
