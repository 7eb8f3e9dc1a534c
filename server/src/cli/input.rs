//! Parses arguments and lines of standard input into bytes and operations. Pure.

use std::str::FromStr;

use rangedb_client::Batch;
use rangedb_server::admin::batch::{Operation, from_hex};
use rangedb_server::admin::json;

use super::CliError;
use super::args::WriteArgs;
use super::condition_args::Flag;

/// The bytes of an argument: its text, or the bytes that hexadecimal digits stand for.
pub(super) fn bytes(text: &str, hex: bool) -> Result<Vec<u8>, CliError> {
    if !hex {
        return Ok(text.as_bytes().to_vec());
    }
    from_hex(text).map_err(CliError::usage)
}

/// A batch, and what each of its conditions is called in messages.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TypedBatch {
    pub(super) batch: Batch,
    pub(super) conditions: Vec<String>,
}

/// The batch with these conditions and `put KEY VALUE`, `delete KEY`, `add KEY N`, one after another.
pub(super) fn batch(args: &WriteArgs) -> Result<TypedBatch, CliError> {
    let hex = args.connection.hex;
    let bytes = |text: &String| bytes(text, hex);
    let mut batch = Batch::new();
    let mut conditions = Vec::new();
    for condition in &args.conditions.0 {
        let (key, wanted) = (bytes(&condition.key)?, &condition.wanted);
        batch = match condition.flag {
            Flag::Absent => batch.if_absent(key),
            Flag::Exists => batch.if_exists(key),
            Flag::Value => batch.if_value(key, bytes(wanted)?),
            Flag::Version => batch.if_version(key, number(wanted, "--if-version K")?),
        };
        conditions.push(condition.name());
    }
    let mut words = args.operations.iter();
    while let Some(word) = words.next() {
        let mut next = |what: &str| {
            let missing = || CliError::usage(format!("{word} needs a {what}"));
            words.next().ok_or_else(missing)
        };
        batch = match word.as_str() {
            "put" => batch.put(bytes(next("key")?)?, bytes(next("value")?)?),
            "delete" => batch.delete(bytes(next("key")?)?),
            "add" => batch.add(bytes(next("key")?)?, number(next("number")?, "add KEY")?),
            other => {
                return Err(CliError::usage(format!(
                    "expected put, delete or add, not '{other}'"
                )));
            }
        };
    }
    Ok(TypedBatch { batch, conditions })
}

fn number<N: FromStr>(text: &str, what: &str) -> Result<N, CliError> {
    let no_number = |_| CliError::usage(format!("{what} takes a whole number, not '{text}'"));
    text.parse().map_err(no_number)
}

/// One JSON object a line; empty lines are skipped.
pub(super) fn json_batch(text: &str, hex: bool) -> Result<TypedBatch, CliError> {
    let mut typed = TypedBatch::default();
    for (index, text) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let number = index + 1;
        let at = |message: String| CliError::usage(format!("line {number}: {message}"));
        let read = json::object::<Operation>(text.as_bytes(), Operation::SHAPE);
        let operation = read.map_err(at)?;
        if operation.is_condition() {
            typed
                .conditions
                .push(format!("the condition of line {number}"));
        }
        typed.batch = operation.add_to(typed.batch, hex).map_err(at)?;
    }
    Ok(typed)
}
