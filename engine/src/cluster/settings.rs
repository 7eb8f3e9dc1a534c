//! The settings of the cluster: their names and allowed values. Pure.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::byte_size::parse_size;
use crate::error::OrderError;

/// A setting of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The name by which `config set` and `config get` know it.
    pub name: &'static str,
    /// Its value as long as it was never set.
    pub default: &'static str,
    /// The values that it may have, for people.
    pub may_be: &'static str,
}

/// The settings.
pub const SETTINGS: [Rule; 8] = [
    Rule {
        name: "replication-factor",
        default: "3",
        may_be: "1, 3 or 5",
    },
    Rule {
        name: "dead-after",
        default: "5m",
        may_be: "a time from 1s, such as 90s or 5m",
    },
    Rule {
        name: "balance",
        default: "on",
        may_be: "on or off",
    },
    Rule {
        name: "range-size-max",
        default: "256MiB",
        may_be: "a size from 16MiB to 4GiB",
    },
    Rule {
        name: "merge",
        default: "on",
        may_be: "on or off",
    },
    Rule {
        name: "merge-after",
        default: "10m",
        may_be: "a time from 1s to 24h, such as 90s or 10m",
    },
    Rule {
        name: "moves-max",
        default: "2",
        may_be: "a whole number from 0 to 8",
    },
    Rule {
        name: "split-by-load",
        default: "on",
        may_be: "on or off",
    },
];

/// The rule of a setting.
///
/// # Errors
/// [`OrderError::NotFound`]: there is no such setting.
pub fn rule(name: &str) -> Result<&'static Rule, OrderError> {
    let found = SETTINGS.iter().find(|rule| rule.name == name);
    found.ok_or_else(|| {
        let names = SETTINGS.map(|rule| rule.name).join(", ");
        OrderError::NotFound(format!(
            "there is no setting {name:?}; the settings are {names}"
        ))
    })
}

/// The shortest `dead-after`.
const DEAD_AFTER_MIN: Duration = Duration::from_secs(1);
/// What `merge-after` may be.
const MERGE_AFTER: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(24);
/// What `range-size-max` may be, in bytes.
const RANGE_SIZE_MAX: RangeInclusive<u64> = 16 << 20..=4 << 30;
/// What `moves-max` may be, in replicas.
const MOVES_MAX: RangeInclusive<u8> = 0..=8;

/// Checks a new value.
///
/// # Errors
/// [`OrderError::NotFound`]: there is no such setting. [`OrderError::Invalid`]: it may not have this
/// value.
pub fn check(name: &str, value: &str) -> Result<(), OrderError> {
    let rule = rule(name)?;
    let fits = match name {
        "replication-factor" => ["1", "3", "5"].contains(&value),
        "dead-after" => {
            let time = rangedb_duration::parse(value);
            let time = time.map_err(|bad| OrderError::Invalid(format!("{name}: {bad}")))?;
            time >= DEAD_AFTER_MIN
        }
        "merge-after" => {
            let time = rangedb_duration::parse(value);
            let time = time.map_err(|bad| OrderError::Invalid(format!("{name}: {bad}")))?;
            MERGE_AFTER.contains(&time)
        }
        "range-size-max" => {
            let invalid = |bad| OrderError::Invalid(format!("{name} is {value:?}: {bad}"));
            RANGE_SIZE_MAX.contains(&parse_size(value).map_err(invalid)?)
        }
        "moves-max" => {
            let is_number = value.bytes().all(|digit| digit.is_ascii_digit());
            is_number && value.parse().is_ok_and(|moves| MOVES_MAX.contains(&moves))
        }
        _ => ["on", "off"].contains(&value),
    };
    if !fits {
        let why = format!("{name} is {}, not {value:?}", rule.may_be);
        return Err(OrderError::Invalid(why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_keep_the_rules() {
        for rule in SETTINGS {
            assert_eq!(check(rule.name, rule.default), Ok(()), "{}", rule.name);
        }
    }

    #[test]
    fn settings_have_rules() {
        for (name, value) in [
            ("replication-factor", "5"),
            ("dead-after", "90s"),
            ("dead-after", "1h"),
            ("dead-after", "1s"),
            ("dead-after", "1.5s"),
            ("dead-after", "2500ms"),
            ("dead-after", "0.5m"),
            ("dead-after", "5"),
            ("merge-after", "5"),
            ("balance", "off"),
            ("merge", "off"),
            ("merge-after", "1s"),
            ("merge-after", "24h"),
            ("split-by-load", "off"),
            ("range-size-max", "16MiB"),
            ("range-size-max", "4GiB"),
            ("range-size-max", "100000000"),
            ("moves-max", "0"),
            ("moves-max", "8"),
        ] {
            assert_eq!(check(name, value), Ok(()), "{name} {value}");
        }
        for (name, value) in [
            ("replication-factor", "2"),
            ("dead-after", "0s"),
            ("dead-after", "999ms"),
            ("dead-after", ""),
            ("dead-after", "-5s"),
            ("dead-after", "5 s"),
            ("dead-after", "5d"),
            ("dead-after", "0.5"),
            ("dead-after", "99999999999h"),
            ("balance", "maybe"),
            ("merge", "maybe"),
            ("merge-after", "999ms"),
            ("merge-after", "25h"),
            ("split-by-load", "yes"),
            ("range-size-max", "15MiB"),
            ("range-size-max", "4097MiB"),
            ("range-size-max", "1TB"),
            ("range-size-max", ""),
            ("range-size-max", "99999999TiB"),
            ("moves-max", "9"),
            ("moves-max", "-1"),
            ("moves-max", "+1"),
            ("moves-max", "1.5"),
            ("moves-max", ""),
        ] {
            let refused = check(name, value);
            assert!(
                matches!(refused, Err(OrderError::Invalid(why)) if why.contains(value)),
                "{name} {value}"
            );
        }
        let unknown = check("colour", "red");
        assert!(matches!(unknown, Err(OrderError::NotFound(why)) if why.contains("balance")));
    }
}
