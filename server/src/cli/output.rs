//! Formats answers, and the keys and values in them, for printing.

use std::fmt::Write as _;
use std::io;

use rangedb_server::admin::json::{self, hex};
use serde_json::{Value, json};

use super::connection_args::Format;
use super::{CliError, Exit};

/// The options for printing answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Printer {
    pub(super) format: Format,
    pub(super) hex: bool,
}

impl Printer {
    /// Prints an answer: `facts` as JSON, or `words` for people.
    pub(super) fn print(
        self,
        out: &mut impl io::Write,
        facts: Value,
        words: &str,
    ) -> Result<Exit, CliError> {
        match self.format {
            Format::Table => writeln!(out, "{words}")?,
            Format::Json => writeln!(out, "{facts}")?,
        }
        Ok(Exit::Done)
    }

    /// Prints the answer to a change that took place. If that fails the exit code still tells that it
    /// did.
    pub(super) fn applied(
        self,
        out: &mut impl io::Write,
        facts: Value,
        words: &str,
    ) -> Result<Exit, CliError> {
        let printed = self.print(out, facts, words);
        let flushed = printed.and_then(|exit| {
            out.flush()?;
            Ok(exit)
        });
        flushed.map_err(CliError::unprinted)
    }

    /// Prints the version that a write made.
    pub(super) fn version(self, out: &mut impl io::Write, version: u64) -> Result<Exit, CliError> {
        self.applied(
            out,
            json!({ "version": json::version(version) }),
            &format!("version {version}"),
        )
    }
}

/// A size in the largest unit of which it has one, such as `1.5MiB`.
pub(super) fn size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = units.iter().find(|(shift, _)| bytes >> shift > 0);
    match unit {
        Some((shift, unit)) => format!("{:.1}{unit}", bytes as f64 / (1u64 << shift) as f64),
        None => format!("{bytes}B"),
    }
}

/// A latency of this many seconds; `-` if there was no request.
pub(super) fn latency(seconds: Option<f64>) -> String {
    match seconds {
        None => "-".to_owned(),
        Some(seconds) if seconds >= 1.0 => format!("{seconds:.2} s"),
        Some(seconds) if seconds >= 1e-3 => format!("{:.1} ms", seconds * 1e3),
        Some(seconds) => format!("{:.0} us", seconds * 1e6),
    }
}

/// Lays out rows in columns that are two spaces apart.
pub(super) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths);
        let line: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Formats a key or value so that it stays within its line and column: escapes what is not
/// printable.
pub(super) fn word(bytes: &[u8], as_hex: bool) -> String {
    if as_hex {
        return hex(bytes);
    }
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                character if character.is_control() => {
                    let mut buffer = [0; 4];
                    escape(character.encode_utf8(&mut buffer).as_bytes(), &mut text);
                }
                character => text.push(character),
            }
        }
        escape(chunk.invalid(), &mut text);
    }
    text
}

/// Formats a border of a range: bytes other than printable ASCII as `\xNN`.
pub(super) fn border(key: &[u8], open: &str) -> String {
    if key.is_empty() {
        return open.to_owned();
    }
    key.escape_ascii().to_string()
}

fn escape(bytes: &[u8], text: &mut String) {
    for byte in bytes {
        let _ = write!(text, "\\x{byte:02x}");
    }
}
