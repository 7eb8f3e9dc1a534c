//! The settings of the cluster: their names and allowed values. Pure.

use std::time::Duration;

use crate::error::OrderError;

/// The names of the settings, and the values that each may have.
pub const SETTINGS: [(&str, &str); 3] = [
    ("replication-factor", "1, 3 or 5 (default 3)"),
    (
        "dead-after",
        "a time from 1s, such as 90s or 5m (default 5m)",
    ),
    ("balance", "on or off (default on)"),
];

/// What a setting may be.
///
/// # Errors
/// [`OrderError::NotFound`]: there is no such setting.
pub fn rule(name: &str) -> Result<&'static str, OrderError> {
    let found = SETTINGS.iter().find(|(known, _)| *known == name);
    found.map(|(_, rule)| *rule).ok_or_else(|| {
        let names = SETTINGS.map(|(name, _)| name).join(", ");
        OrderError::NotFound(format!(
            "there is no setting {name:?}; the settings are {names}"
        ))
    })
}

/// The shortest `dead-after`.
const DEAD_AFTER_MIN: Duration = Duration::from_secs(1);

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
        _ => ["on", "off"].contains(&value),
    };
    if !fits {
        let why = format!("{name} is {rule}, not {value:?}");
        return Err(OrderError::Invalid(why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ("balance", "off"),
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
            ("dead-after", "5"),
            ("dead-after", "99999999999h"),
            ("balance", "maybe"),
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
