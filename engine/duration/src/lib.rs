//! Parses durations as people type them: `500ms`, `1.5s`, `10m`, `2h`, and `5` for five seconds.
//!
//! A duration is a decimal number, with or without a fraction, followed directly by one of the
//! units `ms`, `s`, `m` and `h`. A number without a unit counts seconds. Spaces before and after are
//! ignored. This is the one rule for durations that people type: the settings of a node, the
//! settings of the cluster, the command line, the load generator and the scripts all use this
//! parser, so they share one grammar and one error message. It is a crate of its own because the
//! load generator and the scripts do not depend on the engine. It does no I/O.

use std::time::Duration;

/// The longest duration: 4,294,967,295 hours. Sums of a few of them never overflow.
pub const MAX: Duration = Duration::from_hours(u32::MAX as u64);

/// Nanoseconds in a second.
const SECOND_NS: u128 = 1_000_000_000;
/// Digits of a fraction that are read; further ones are worth less than a nanosecond in any unit.
const FRACTION_DIGITS_MAX: usize = 18;

/// Why a text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadDuration {
    /// It breaks the grammar.
    #[error(
        "{0:?} is not a duration: write a number followed directly by ms, s, m or h, such as \
         500ms, 1.5s, 10m or 2h; a number without a unit counts seconds"
    )]
    Grammar(String),
    /// It is longer than [`MAX`].
    #[error("{0:?} is too long: a duration is at most {max}h", max = u32::MAX)]
    TooLong(String),
}

/// Parses a duration. Zero is allowed; digits below a nanosecond are cut off.
///
/// # Errors
/// The text breaks the grammar, or is longer than [`MAX`].
pub fn parse(text: &str) -> Result<Duration, BadDuration> {
    let bad = || BadDuration::Grammar(text.to_owned());
    let too_long = || BadDuration::TooLong(text.to_owned());
    let typed = text.trim();
    let is_of_unit = |c: char| !c.is_ascii_digit() && c != '.';
    let (number, unit) = typed.split_at(typed.find(is_of_unit).unwrap_or(typed.len()));
    let unit_ns = match unit {
        "ms" => SECOND_NS / 1000,
        "s" | "" => SECOND_NS,
        "m" => SECOND_NS * 60,
        "h" => SECOND_NS * 60 * 60,
        _ => return Err(bad()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || whole.len() + fraction.len() == 0 {
        return Err(bad());
    }
    // Both parts are empty or consist of digits, so only an overflow can make this fail.
    let count = |digits: &str| match digits {
        "" => Ok(0),
        digits => digits.parse::<u64>().map(u128::from),
    };
    let fraction = &fraction[..fraction.len().min(FRACTION_DIGITS_MAX)];
    let whole = count(whole).map_err(|_| too_long())?;
    let part = count(fraction).map_err(|_| too_long())?;
    let scale = (0..fraction.len()).fold(1, |scale: u128, _| scale * 10);
    let ns = whole * unit_ns + part * unit_ns / scale;
    let seconds = u64::try_from(ns / SECOND_NS).map_err(|_| too_long())?;
    let duration = Duration::new(seconds, (ns % SECOND_NS) as u32);
    if duration > MAX {
        return Err(too_long());
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_with_units_are_durations() {
        for (text, duration) in [
            ("500ms", Duration::from_millis(500)),
            ("90s", Duration::from_secs(90)),
            ("10m", Duration::from_mins(10)),
            ("2h", Duration::from_hours(2)),
            ("0s", Duration::ZERO),
            ("007s", Duration::from_secs(7)),
            ("1.5s", Duration::from_millis(1500)),
            ("0.1s", Duration::from_millis(100)),
            ("1.25ms", Duration::from_micros(1250)),
            ("0.5m", Duration::from_secs(30)),
            ("1.5h", Duration::from_mins(90)),
            (".5s", Duration::from_millis(500)),
            ("2.s", Duration::from_secs(2)),
            ("  5s ", Duration::from_secs(5)),
            ("0.000000001s", Duration::from_nanos(1)),
            ("0.0000000019s", Duration::from_nanos(1)),
            (
                "0.3333333333333333333333333h",
                Duration::from_nanos(1_199_999_999_999),
            ),
            ("4294967295h", MAX),
        ] {
            assert_eq!(parse(text), Ok(duration), "{text}");
        }
    }

    #[test]
    fn a_number_without_a_unit_counts_seconds() {
        for (text, duration) in [
            ("2", Duration::from_secs(2)),
            ("0.5", Duration::from_millis(500)),
            ("0", Duration::ZERO),
            (" 5 ", Duration::from_secs(5)),
            ("15461882262000", MAX),
        ] {
            assert_eq!(parse(text), Ok(duration), "{text}");
        }
    }

    #[test]
    fn what_breaks_the_grammar_is_refused_with_the_text_and_the_grammar() {
        for text in [
            "", " ", ".", "s", "ms", ".s", "-1s", "+1s", "5 s", "5d", "5S", "5sec", "5us",
            "1.2.3s", "1,5s", "1e3s", "5s5", "5s 1ms", "5h30m", "inf", "nan", "NaNs", "0x5s",
            "\u{665}s",
        ] {
            let bad = parse(text).expect_err(text);
            assert_eq!(bad, BadDuration::Grammar(text.to_owned()));
            let message = bad.to_string();
            assert!(message.contains(&format!("{text:?}")), "{message}");
            for part in ["500ms", "1.5s", "10m", "2h", "counts seconds"] {
                assert!(message.contains(part), "{message}");
            }
        }
    }

    #[test]
    fn what_is_too_long_is_refused_without_an_overflow() {
        let digits = "9".repeat(400);
        for text in [
            "4294967296h".to_owned(),
            "4294967295.1h".to_owned(),
            "99999999999h".to_owned(),
            format!("{}ms", u64::MAX),
            format!("{}h", u64::MAX),
            "15461882262001".to_owned(),
            format!("{digits}s"),
            format!("{digits}.5ms"),
        ] {
            let bad = parse(&text).expect_err(&text);
            assert_eq!(bad, BadDuration::TooLong(text.clone()));
            assert!(bad.to_string().contains(&text), "{bad}");
        }
    }
}
