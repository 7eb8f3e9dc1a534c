//! Decides a write: if all conditions of its batch hold, its mutations are carried out, and otherwise nothing
//! is. A compare-and-swap is a batch with one condition and one mutation. An addition to a value that is no
//! number, or past 64 bits, refuses the batch as well. Called by [`crate::range::apply`], in log order.
//! Deterministic.

use std::borrow::Cow;

use crate::lsm::LsmError;
use crate::mutant::{self, Mutant};
use crate::range::rows::Rows;
use crate::request::{ArchivedBatch, ArchivedChange, ArchivedExpected, ArchivedMutation, Outcome};
use crate::types::Timestamp;

/// Checks the conditions of a batch in order and, if all hold, carries out its mutations.
///
/// # Errors
/// The tree cannot be read.
pub(super) fn write(
    rows: &mut impl Rows,
    batch: &ArchivedBatch,
    version: Timestamp,
) -> Result<Outcome, LsmError> {
    let mut existed = false;
    for (place, condition) in (0..).zip(batch.conditions.iter()) {
        if place > 0 && mutant::is(Mutant::FirstConditionAlone) {
            break;
        }
        let (holds, current) =
            rows.newest(&condition.key, |found| compare(&condition.expected, found))?;
        if !holds {
            let condition = place;
            return Ok(Outcome::ConditionFailed { current, condition });
        }
        existed |= current.is_some();
    }
    match batch.mutations.as_slice() {
        [mutation] => {
            // A compare-and-swap has just read the key that it changes.
            let known = match batch.conditions.as_slice() {
                [condition] if *condition.key == *mutation.key => Some(existed),
                _ => None,
            };
            write_one(rows, mutation, (existed, known), version)
        }
        mutations => write_all(rows, mutations, existed, version),
    }
}

/// Whether a condition holds, and the version of the present value.
fn compare(
    expected: &ArchivedExpected,
    found: Option<(Timestamp, Option<&[u8]>)>,
) -> (bool, Option<Timestamp>) {
    let live = found.and_then(|(version, value)| value.map(|value| (version, value)));
    let holds = match expected {
        ArchivedExpected::Absent => live.is_none(),
        ArchivedExpected::Value(wanted) => live.is_some_and(|(_, value)| value == &**wanted),
        ArchivedExpected::Version(wanted) => {
            live.is_some_and(|(version, _)| version.0 == wanted.0.to_native())
        }
        ArchivedExpected::Exists => live.is_some(),
    };
    (holds, live.map(|(version, _)| version))
}

/// The one mutation of a batch. A lone delete looks whether there is something to delete, unless that
/// is known.
fn write_one(
    rows: &mut impl Rows,
    ArchivedMutation { key, change }: &ArchivedMutation,
    (mut existed, known): (bool, Option<bool>),
    version: Timestamp,
) -> Result<Outcome, LsmError> {
    match change {
        ArchivedChange::Put { value, .. } => rows.insert(key, version, Some(value)),
        ArchivedChange::Delete => {
            let is_there = match known {
                Some(is_there) => is_there,
                None => rows.newest(key, |found| matches!(found, Some((_, Some(_)))))?,
            };
            if is_there {
                rows.insert(key, version, None);
            }
            existed |= is_there;
        }
        ArchivedChange::Add { delta } => {
            let number = rows.newest(key, |found| parse(found.and_then(|(_, value)| value)))?;
            return Ok(match sum(number, delta.to_native()) {
                Ok(value) => {
                    rows.insert(key, version, Some(value.to_string().as_bytes()));
                    Outcome::Number { version, value }
                }
                Err(refused) => refused,
            });
        }
    }
    Ok(Outcome::Done { version, existed })
}

/// A key and the value that a batch leaves it with, if any.
type Changed<'a> = (&'a [u8], Option<Cow<'a, [u8]>>);

/// Several mutations: each key is written once, as the last of its changes leaves it.
fn write_all(
    rows: &mut impl Rows,
    mutations: &[ArchivedMutation],
    existed: bool,
    version: Timestamp,
) -> Result<Outcome, LsmError> {
    let mut order: Vec<(usize, &ArchivedMutation)> = mutations.iter().enumerate().collect();
    order.sort_by(|(a, one), (b, other)| one.key.cmp(&other.key).then(a.cmp(b)));
    let mut numbers: Vec<(usize, i64)> = Vec::new();
    let mut changed: Vec<Changed<'_>> = Vec::with_capacity(order.len());
    for (place, ArchivedMutation { key, change }) in order {
        let same_key = changed.last_mut().filter(|(last, _)| *last == &**key);
        let value = match change {
            ArchivedChange::Put { value, .. } => Some(Cow::Borrowed(&**value)),
            ArchivedChange::Delete => None,
            ArchivedChange::Add { delta } => {
                let number = match &same_key {
                    Some((_, value)) => parse(value.as_deref()),
                    None => rows.newest(key, |found| parse(found.and_then(|(_, value)| value)))?,
                };
                match sum(number, delta.to_native()) {
                    Ok(value) => {
                        numbers.push((place, value));
                        Some(Cow::Owned(value.to_string().into_bytes()))
                    }
                    Err(refused) => return Ok(refused),
                }
            }
        };
        match same_key {
            Some(last) => last.1 = value,
            None => changed.push((key, value)),
        }
    }
    for (key, value) in changed {
        rows.insert(key, version, value.as_deref());
    }
    numbers.sort_unstable();
    let mut values = numbers.into_iter().map(|(_, value)| value);
    Ok(match (values.next(), values.next()) {
        (None, _) => Outcome::Done { version, existed },
        (Some(value), None) => Outcome::Number { version, value },
        (Some(first), Some(second)) => Outcome::Numbers {
            version,
            values: [first, second].into_iter().chain(values).collect(),
        },
    })
}

/// The number that a value is, an absent one counting as 0; `None` if it is no number.
fn parse(value: Option<&[u8]>) -> Option<i64> {
    value.map_or(Some(0), parse_number)
}

/// The sum of a number and what is added to it, or the outcome that refuses the addition.
fn sum(number: Option<i64>, delta: i64) -> Result<i64, Outcome> {
    let number = number.ok_or(Outcome::NotANumber)?;
    number.checked_add(delta).ok_or(Outcome::NumberOverflow)
}

/// A signed 64-bit number in decimal text: an optional minus and digits, nothing else.
fn parse_number(value: &[u8]) -> Option<i64> {
    let digits = value.strip_prefix(b"-").unwrap_or(value);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}
