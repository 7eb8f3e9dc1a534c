//! `GET /api/v1/history`: the parameters of its query.

use rangedb_engine::env::Clock;
use rangedb_protocol::admin::Step;

use super::failure::Failure;
use super::scan::parameters;
use crate::env::SystemClock;
use crate::history::Query;

/// Reads a query: `from` and `to` are how long ago, such as `2h`, or milliseconds since 1970.
pub(super) fn query(text: &str) -> Result<Query, Failure> {
    let mut query = Query::default();
    for (name, value) in parameters(text, &["from", "to", "step"])? {
        let value = String::from_utf8_lossy(&value).into_owned();
        match (name, value.as_str()) {
            ("from", text) => query.from_ms = Some(time(text, SystemClock.wall_ms())?),
            ("to", text) => query.to_ms = Some(time(text, SystemClock.wall_ms())?),
            (_, "minute") => query.step = Step::Minute,
            (_, "hour") => query.step = Step::Hour,
            _ => return Err(Failure::invalid("step is minute or hour")),
        }
    }
    let (from, to) = (query.from_ms, query.to_ms);
    if from.zip(to).is_some_and(|(from, to)| from > to) {
        return Err(Failure::invalid(
            "from is after to: a time ago, such as 2h, is the earlier the longer it is",
        ));
    }
    Ok(query)
}

/// A time in milliseconds since 1970.
fn time(text: &str, now: u64) -> Result<u64, Failure> {
    if let Ok(ms) = text.parse() {
        return Ok(ms);
    }
    let ago = rangedb_duration::parse(text).map_err(|bad| {
        Failure::invalid(format!(
            "a time is how long ago, such as 2h, or milliseconds since 1970: {bad}"
        ))
    })?;
    Ok(now.saturating_sub(ago.as_millis() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_ago_or_since_1970() {
        assert_eq!(time("2h", 10_000_000).ok(), Some(2_800_000));
        assert_eq!(time("1700000000000", 7).ok(), Some(1_700_000_000_000));
        assert!(time("yesterday", 7).is_err());
        assert!(query("step=day").is_err());
        assert!(query("since=2h").is_err());
        assert!(query("from=1h&to=2h").is_err());
        assert!(query("from=2h&to=1h").is_ok());
        let asked = query("from=1&to=2&step=hour").expect("it is understood");
        assert_eq!((asked.from_ms, asked.to_ms), (Some(1), Some(2)));
        assert_eq!(asked.step, Step::Hour);
    }
}
