//! Parses arguments and lines of standard input into bytes and operations. Pure.

use std::str::FromStr;

use rangedb_client::Batch;
use rangedb_server::admin::batch::{Operation, from_hex};

use super::Trouble;
use super::args::WriteArgs;

/// The bytes of an argument: its text, or the bytes that hexadecimal digits stand for.
pub(super) fn bytes(text: &str, hex: bool) -> Result<Vec<u8>, Trouble> {
    if !hex {
        return Ok(text.as_bytes().to_vec());
    }
    from_hex(text).map_err(Trouble::usage)
}

/// The batch with these conditions and `put KEY VALUE`, `delete KEY`, `add KEY N`, one after another.
pub(super) fn batch(args: &WriteArgs) -> Result<Batch, Trouble> {
    let hex = args.connection.hex;
    let bytes = |text: &String| bytes(text, hex);
    let mut batch = Batch::new();
    for key in &args.if_absent {
        batch = batch.if_absent(bytes(key)?);
    }
    for key in &args.if_exists {
        batch = batch.if_exists(bytes(key)?);
    }
    for pair in args.if_value.chunks_exact(2) {
        batch = batch.if_value(bytes(&pair[0])?, bytes(&pair[1])?);
    }
    for pair in args.if_version.chunks_exact(2) {
        batch = batch.if_version(bytes(&pair[0])?, number(&pair[1], "--if-version K")?);
    }
    let mut words = args.operations.iter();
    while let Some(word) = words.next() {
        let mut next = |what: &str| {
            let missing = || Trouble::usage(format!("{word} needs a {what}"));
            words.next().ok_or_else(missing)
        };
        batch = match word.as_str() {
            "put" => batch.put(bytes(next("key")?)?, bytes(next("value")?)?),
            "delete" => batch.delete(bytes(next("key")?)?),
            "add" => batch.add(bytes(next("key")?)?, number(next("number")?, "add KEY")?),
            other => {
                return Err(Trouble::usage(format!(
                    "expected put, delete or add, not '{other}'"
                )));
            }
        };
    }
    Ok(batch)
}

fn number<N: FromStr>(text: &str, what: &str) -> Result<N, Trouble> {
    let no_number = |_| Trouble::usage(format!("{what} takes a whole number, not '{text}'"));
    text.parse().map_err(no_number)
}

/// One JSON object a line; empty lines are skipped.
pub(super) fn json_batch(text: &str, hex: bool) -> Result<Batch, Trouble> {
    let mut batch = Batch::new();
    for (index, text) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let at = |message: String| Trouble::usage(format!("line {}: {message}", index + 1));
        let line: Operation = serde_json::from_str(text).map_err(|error| at(error.to_string()))?;
        batch = line.add_to(batch, hex).map_err(at)?;
    }
    Ok(batch)
}
