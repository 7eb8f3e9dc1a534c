//! Sizes as people type them, such as `64MiB`: the one parser of them, for settings of a node and of the
//! cluster. Pure.

/// Reads a size such as `64MiB`; a bare number counts bytes.
///
/// # Errors
/// The text is no size, or more than a number of 64 bits; the message says what one looks like.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let rule = || "a size is a number with KiB, MiB or GiB, such as 512MiB".to_owned();
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err(rule()),
    };
    let number: u64 = number.parse().map_err(|_| rule())?;
    number.checked_mul(1 << shift).ok_or_else(rule)
}

/// A size as [`parse_size`] reads it, in the largest unit that divides it.
pub fn size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let mut fitting = units.iter().filter(|(shift, _)| {
        let rest = bytes & ((1 << shift) - 1);
        bytes != 0 && rest == 0
    });
    match fitting.next() {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for (text, bytes) in [
            ("0", 0),
            ("1000", 1000),
            ("1KiB", 1 << 10),
            ("64MiB", 64 << 20),
            ("3GiB", 3 << 30),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
            assert_eq!(size(bytes), text);
        }
        assert_eq!(parse_size(" 7 MiB "), Ok(7 << 20));
        for bad in ["", "MiB", "-1", "1.5GiB", "1MB", "1mib", "16777216TiB"] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
    }
}
