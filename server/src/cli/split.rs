//! `rangedb range split`: splits one range at a few keys or into equal parts, or all ranges at the keys of a
//! file.
//!
//! A file may have more keys for one range than one order may have. Then a first order splits the range at a
//! few of them, evenly chosen. The cluster spreads these parts over nodes and shards. The keys between
//! follow in orders to the new ranges, several at a time. Orders of the same time lie far from each other, so
//! that all nodes carry them out, and lead about equally many ranges all the while. A command that has ended
//! early can be repeated: nothing is done for a key at which a range already begins.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rangedb_client::Client;
use rangedb_client::admin::{Admin, Range, SplitFailure, SplitPart};
use rangedb_protocol::admin::Split;
use rangedb_protocol::limits::{ADMIN_COMMAND_LEN_MAX, KEY_LEN_MAX, check_key};
use rangedb_server::admin::json::of_state;

use super::output::{Printer, border, columns};
use super::{CliError, Exit, input};

/// Most keys of a file.
const FILE_KEYS_MAX: usize = 10_000;
/// The longest file: keys of all lengths in hexadecimal digits fit.
pub(super) const FILE_LEN_MAX: usize = FILE_KEYS_MAX * (2 * KEY_LEN_MAX + 2);
/// Most keys of one order: it answers while a person still waits.
const ORDER_KEYS_MAX: usize = 256;
/// Orders to different ranges that are given at the same time.
const ORDERS_AT_ONCE: usize = 16;
/// Most bytes of one order's keys, as they are sent.
const ORDER_LEN_MAX: usize = ADMIN_COMMAND_LEN_MAX - 1024;

/// Where ranges are to be split.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum At {
    /// One range, at these keys.
    Range(u64, Vec<Vec<u8>>),
    /// One range, into so many parts of about the same size.
    Parts(u64, u32),
    /// Whatever ranges have these keys, which are sorted.
    Keys(Vec<Vec<u8>>),
}

/// The keys of a file's text, one a line.
///
/// # Errors
/// Names every line that is wrong.
pub(super) fn keys_of_file(path: &Path, text: &[u8], hex: bool) -> Result<At, CliError> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let (mut keys, mut wrong) = (BTreeMap::new(), Vec::new());
    for (at, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let number = at + 1;
        let key = match hex {
            false => Ok(line.to_vec()),
            true => input::bytes(&String::from_utf8_lossy(line), true).map_err(|bad| bad.message),
        };
        let key = key.and_then(|key| match check_key(&key) {
            Err(broken) => Err(broken.to_string()),
            Ok(()) if !hex && key.ends_with(b"\r") => {
                let why = "it ends with a carriage return; lines end with a newline alone, and --hex takes \
                           keys with one";
                Err(why.to_owned())
            }
            Ok(()) => Ok(key),
        });
        let key = key.and_then(|key| match keys.get(&key) {
            Some(first) => Err(format!("it has the key of line {first} again")),
            None => Ok(key),
        });
        match key {
            Ok(key) => drop(keys.insert(key, number)),
            Err(why) => wrong.push(format!("line {number}: {why}")),
        }
    }
    let path = path.display();
    let message = match keys.len() {
        _ if !wrong.is_empty() => format!("{path}: {}", wrong.join("\n")),
        count if count > FILE_KEYS_MAX => format!(
            "{path} has {count} keys, and a command takes up to {FILE_KEYS_MAX}; give the rest in another \
             file"
        ),
        _ => return Ok(At::Keys(keys.into_keys().collect())),
    };
    let exit = Exit::Refused;
    Err(CliError { exit, message })
}

/// Splits ranges, and prints what they were split into.
pub(super) async fn perform(
    client: &Client,
    (at, hold): (At, Duration),
    timeout: Duration,
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let admin = client.admin();
    let answer = match at {
        At::Range(range, keys) => admin.split_range(range, &keys, Some(hold)).await?,
        At::Parts(range, parts) => admin.split_range_into(range, parts, Some(hold)).await?,
        At::Keys(keys) => {
            let mut bulk = Bulk::new(admin, hold);
            let result = bulk.split_all(keys, Instant::now() + timeout).await;
            let failed = match result {
                Err(error) if bulk.parts.is_empty() => return Err(error),
                Err(error) => Some(SplitFailure {
                    reason: error.message,
                    unknown: error.exit == Exit::FateUnknown,
                }),
                Ok(()) => None,
            };
            let ranges = bulk.parts.into_values().collect();
            Split { ranges, failed }
        }
    };
    let exit = printer.applied(out, of_state(&answer)?, table(&answer.ranges).trim_end())?;
    match answer.failed {
        None => Ok(exit),
        Some(SplitFailure { reason, unknown }) => Err(CliError {
            exit: match unknown {
                true => Exit::FateUnknown,
                false => Exit::Refused,
            },
            message: format!("not all was split: {reason}"),
        }),
    }
}

/// Formats ranges as lines with a heading.
fn table(parts: &[SplitPart]) -> String {
    let mut rows = vec![["id", "start", "end"].map(str::to_owned)];
    rows.extend(parts.iter().map(|part| {
        let end = part.end.as_deref().unwrap_or_default();
        [
            part.id.to_string(),
            border(&part.start, "(begin)"),
            border(end, "(end)"),
        ]
    }));
    columns(&rows)
}

/// A range's id, and keys that are in it.
type KeysOfRange = (u64, Vec<Vec<u8>>);

/// Many splits.
struct Bulk {
    admin: Admin,
    hold: Duration,
    /// What there is now of the ranges that were split, by their first keys.
    parts: BTreeMap<Vec<u8>, SplitPart>,
}

impl Bulk {
    fn new(admin: Admin, hold: Duration) -> Bulk {
        Bulk {
            admin,
            hold,
            parts: BTreeMap::new(),
        }
    }

    /// Splits the ranges that have these keys at them.
    async fn split_all(&mut self, keys: Vec<Vec<u8>>, until: Instant) -> Result<(), CliError> {
        let ranges = self.admin.ranges().await?;
        let mut left: VecDeque<KeysOfRange> = by_range(&ranges, keys)?.into();
        let (admin, hold) = (self.admin.clone(), self.hold);
        let mut given = FuturesUnordered::new();
        // After a failure the orders that were given are waited for, and no more are given.
        let mut failed = None;
        loop {
            if failed.is_none() && Instant::now() >= until && !left.is_empty() {
                let keys: usize = left.iter().map(|(_, keys)| keys.len()).sum();
                failed = Some(CliError {
                    exit: Exit::Refused,
                    message: format!(
                        "the time is over, and {keys} keys or more are left; repeat the command, or have \
                         --timeout wait longer"
                    ),
                });
            }
            while failed.is_none()
                && given.len() < ORDERS_AT_ONCE
                && let Some((range, keys)) = left.pop_front()
            {
                let admin = &admin;
                given.push(async move {
                    let (now, later) = first_keys(keys);
                    let split = admin.split_range(range, &now, Some(hold)).await;
                    (split, later)
                });
            }
            let Some((split, later)) = given.next().await else {
                return failed.map_or(Ok(()), Err);
            };
            match split {
                Ok(split) => match self.take(split, later) {
                    Ok(follow) => left.extend(spread(follow)),
                    Err(error) => worse(&mut failed, error),
                },
                Err(error) => worse(&mut failed, error.into()),
            }
        }
    }

    /// Takes the answer to an order; gives the keys of later orders by the ranges that have them now.
    fn take(&mut self, split: Split, later: Vec<Vec<u8>>) -> Result<Vec<KeysOfRange>, CliError> {
        let parts = split.ranges.iter();
        let begins = parts.map(|part| (part.start.clone(), part.clone()));
        self.parts.extend(begins);
        if let Some(SplitFailure { reason, unknown }) = split.failed {
            let exit = match unknown {
                true => Exit::FateUnknown,
                false => Exit::Refused,
            };
            let message = format!("{reason}; repeat the command when that has passed");
            return Err(CliError { exit, message });
        }
        let mut later = later.into_iter().peekable();
        let mut follow = Vec::new();
        for part in split.ranges {
            let is_in = |key: &Vec<u8>| part.end.as_ref().is_none_or(|end| key < end);
            let keys: Vec<_> = std::iter::from_fn(|| later.next_if(is_in)).collect();
            if !keys.is_empty() {
                follow.push((part.id, keys));
            }
        }
        Ok(follow)
    }
}

/// The same orders in a sequence in which those that are given at the same time lie far from each other.
fn spread(orders: Vec<KeysOfRange>) -> Vec<KeysOfRange> {
    let step = orders.len().div_ceil(ORDERS_AT_ONCE).max(1);
    let mut numbered: Vec<_> = orders.into_iter().enumerate().collect();
    numbered.sort_by_key(|(at, _)| at % step);
    numbered.into_iter().map(|(_, order)| order).collect()
}

/// Notes a failure. The first one counts, but one whose end is not known before all others.
fn worse(failed: &mut Option<CliError>, error: CliError) {
    if failed.is_none() || error.exit == Exit::FateUnknown {
        *failed = Some(error);
    }
}

/// The keys by the ranges that have them, without those at which a range begins.
fn by_range(ranges: &[Range], keys: Vec<Vec<u8>>) -> Result<Vec<KeysOfRange>, CliError> {
    let mut users: Vec<&Range> = ranges.iter().filter(|range| !range.system).collect();
    users.sort_by(|one, other| one.start.cmp(&other.start));
    let mut found: Vec<KeysOfRange> = Vec::new();
    for key in keys {
        let behind = users.partition_point(|range| range.start <= key);
        let range = behind.checked_sub(1).map(|at| users[at]);
        let has = |range: &&Range| range.end.as_ref().is_none_or(|end| key < *end);
        let Some(range) = range.filter(has) else {
            let exit = Exit::Refused;
            let key = key.escape_ascii();
            let message = format!(
                "no range is known that has the key {key}; `rangedb status` shows what is unavailable"
            );
            return Err(CliError { exit, message });
        };
        if range.start == key {
            continue;
        }
        match found.last_mut() {
            Some((id, keys)) if *id == range.id => keys.push(key),
            _ => found.push((range.id, vec![key])),
        }
    }
    Ok(found)
}

/// The keys of the next order, and those for later orders. If they are too many for one order, those of
/// the next one lie evenly among the others.
fn first_keys(keys: Vec<Vec<u8>>) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let fits = |chosen: &[&Vec<u8>]| {
        let len: usize = chosen.iter().map(|key| 2 * key.len() + 3).sum();
        chosen.len() <= ORDER_KEYS_MAX && (len <= ORDER_LEN_MAX || chosen.len() == 1)
    };
    let mut step = 1;
    let chosen: BTreeSet<Vec<u8>> = loop {
        // Every so manieth key, beginning with the middle of the first part.
        let chosen: Vec<&Vec<u8>> = keys.iter().skip(step / 2).step_by(step).collect();
        if fits(&chosen) {
            break chosen.into_iter().cloned().collect();
        }
        step += 1;
    };
    let (now, later) = keys.into_iter().partition(|key| chosen.contains(key));
    (now, later)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str, hex: bool) -> Result<Vec<Vec<u8>>, String> {
        match keys_of_file(Path::new("borders"), text.as_bytes(), hex) {
            Ok(At::Keys(keys)) => Ok(keys),
            Ok(At::Range(..) | At::Parts(..)) => Err("a range".to_owned()),
            Err(error) => {
                assert_eq!(error.exit, Exit::Refused);
                Err(error.message)
            }
        }
    }

    #[test]
    fn every_wrong_line_of_a_file_is_named() {
        assert_eq!(keys("m\na b\n", false), Ok(vec!["a b".into(), "m".into()]));
        assert_eq!(
            keys("00ff\n6D", true),
            Ok(vec![vec![0, 0xff], b"m".to_vec()])
        );
        let why = keys("m\n\nk\r\nm\nz", false).expect_err("three lines are wrong");
        let lines: Vec<&str> = why.lines().collect();
        assert_eq!(lines.len(), 3, "{why}");
        assert!(lines[0].starts_with("borders: line 2: "), "{why}");
        assert!(
            lines[1].starts_with("line 3: ") && lines[1].contains("carriage"),
            "{why}"
        );
        assert!(
            lines[2].starts_with("line 4: ") && lines[2].contains("line 1"),
            "{why}"
        );
        let why = keys("6d\n6\nxx\n\n", true).expect_err("three lines are wrong");
        assert_eq!(why.lines().count(), 3, "{why}");
        let why = keys(&"k".repeat(KEY_LEN_MAX + 1), false).expect_err("it is too long");
        assert!(why.contains("line 1"), "{why}");
        assert!(keys("", false).expect_err("it is empty").contains("line 1"));
        let many: String = (0..=FILE_KEYS_MAX).map(|n| format!("{n}\n")).collect();
        let why = keys(&many, false).expect_err("they are too many");
        assert!(why.contains("10001") && why.contains("10000"), "{why}");
    }

    #[test]
    fn keys_go_to_the_ranges_that_have_them() {
        let range = |id, start: &[u8], end: Option<&[u8]>| {
            let mut range = Range::default();
            (range.id, range.start) = (id, start.to_vec());
            range.end = end.map(<[u8]>::to_vec);
            range
        };
        let mut system = range(1, b"", None);
        system.system = true;
        let ranges = [range(7, b"m", None), system, range(2, b"", Some(b"m"))];
        let keys = |keys: &[&str]| -> Vec<Vec<u8>> { keys.iter().map(|k| (*k).into()).collect() };
        let found = by_range(&ranges, keys(&["a", "b", "m", "n"])).unwrap_or_default();
        assert_eq!(found, [(2, keys(&["a", "b"])), (7, keys(&["n"]))]);
        let gap = by_range(&ranges[2..], keys(&["a", "x"])).expect_err("no range has it");
        assert!(gap.message.contains('x'), "{}", gap.message);
    }

    #[test]
    fn many_keys_go_in_orders_that_fit_and_the_first_lie_evenly() {
        let numbered = |count: usize, len: usize| -> Vec<Vec<u8>> {
            (0..count).map(|n| format!("{n:0len$}").into()).collect()
        };
        let all = numbered(3, 8);
        assert_eq!(first_keys(all.clone()), (all, Vec::new()));
        for (count, len) in [(FILE_KEYS_MAX, 8), (1000, KEY_LEN_MAX), (2, KEY_LEN_MAX)] {
            let all = numbered(count, len);
            let (now, later) = first_keys(all.clone());
            assert_eq!(now.len() + later.len(), count);
            assert!(!now.is_empty() && now.len() <= ORDER_KEYS_MAX);
            assert!(now.len() * (2 * len + 3) <= ORDER_LEN_MAX);
            // No part is much longer than the others.
            let starts: Vec<usize> = now
                .iter()
                .filter_map(|key| all.binary_search(key).ok())
                .collect();
            let longest = starts
                .windows(2)
                .map(|pair| pair[1] - pair[0])
                .max()
                .unwrap_or(1);
            assert!(longest <= count.div_ceil(now.len()), "{longest}");
        }
    }

    #[test]
    fn ranges_are_printed_with_their_borders() {
        let part = |id, start: &[u8], end: Option<&[u8]>| SplitPart {
            id,
            start: start.to_vec(),
            end: end.map(<[u8]>::to_vec),
        };
        let text = table(&[part(2, b"", Some(b"\0m")), part(1_000_001, b"\0m", None)]);
        let lines: Vec<&str> = text.lines().collect();
        let wanted = [
            r"id       start    end",
            r"2        (begin)  \x00m",
            r"1000001  \x00m    (end)",
        ];
        assert_eq!(lines, wanted);
    }

    #[test]
    fn orders_of_the_same_time_lie_far_from_each_other() {
        let orders = |ids: std::ops::Range<u64>| ids.map(|id| (id, Vec::new())).collect();
        let ids = |count| -> Vec<u64> {
            let spread = spread(orders(0..count)).into_iter();
            spread.map(|(id, _)| id).collect()
        };
        assert_eq!(ids(0), Vec::<u64>::new());
        assert_eq!(ids(3), [0, 1, 2]);
        let many = ids(250);
        assert_eq!(many[..4], [0, 16, 32, 48]);
        let all: BTreeSet<u64> = many.into_iter().collect();
        assert_eq!(all.len(), 250);
    }
}
