//! The commands, one function each: [`perform`] sends a command's request and prints the result.

use std::io::Write;

use rangedb_client::{BatchOutcome, CasOutcome, Client, Condition, ScanOptions};
use rangedb_server::admin::{batch as batch_json, json};
use rangedb_server::logging;
use serde_json::{Map, Value, json};

use super::connection_args::{ConnectionArgs, Format};
use super::input::TypedBatch;
use super::output::{self, Printer};
use super::request::{CasCondition, Request};
use super::{CliError, Exit};

/// Sends a request and prints its answer.
pub(super) async fn perform(
    client: &Client,
    request: Request,
    connection: &ConnectionArgs,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let printer = Printer {
        format: connection.format,
        hex: connection.hex,
    };
    match request {
        Request::Get { keys } => match keys.as_slice() {
            [key] => get(client, key, printer, out).await,
            keys => get_many(client, keys, printer, out).await,
        },
        Request::GetRaw { key } => get_raw(client, &key, out).await,
        Request::Put { key, value } => {
            let version = client.put(&key, &value).await?;
            printer.version(out, version)
        }
        Request::Delete { key } => {
            let deleted = client.delete(&key).await?;
            let version = json::version(deleted.version);
            let facts = json!({ "version": version, "existed": deleted.existed });
            let words = if deleted.existed {
                "deleted"
            } else {
                "nothing was there"
            };
            printer.applied(out, facts, &format!("{words}, version {}", deleted.version))
        }
        Request::Cas {
            key,
            condition,
            value,
        } => compare_and_swap(client, (&key, &condition, value.as_deref()), printer, out).await,
        Request::Incr { key, by } => {
            let done = client.increment(&key, by).await?;
            let facts = json!({ "value": done.value, "version": json::version(done.version) });
            printer.applied(out, facts, &done.value.to_string())
        }
        Request::Scan { options, limit } => scan(client, (options, limit), printer, out).await,
        Request::Write(typed) => write(client, &typed, printer, out).await,
        Request::Status => super::status::status(client, printer, out).await,
        Request::Top(top) => super::top::top(client, top, out).await,
        Request::Memory => super::status::memory(client, printer, out).await,
        Request::History { from, to, node } => {
            let span = super::history::Span { from, to };
            super::history::history(client, (node, span), connection, printer, out).await
        }
        Request::Query(query) => super::cluster::show(client, &query, printer, out).await,
        Request::Reload => super::config_and_reload::reload(client, printer, out).await,
        Request::Leave(leave) => {
            super::leave::perform(client, leave, connection.timeout, printer, out).await
        }
        Request::Split(at, hold) => {
            super::split::perform(client, (at, hold), connection.timeout, printer, out).await
        }
        Request::Balance { watch } => super::balance::perform(client, watch, printer, out).await,
        Request::Order(order, waits) => {
            let wait = waits.then_some(connection.timeout);
            super::cluster::order(client, (&order, wait), printer, out).await
        }
    }
}

async fn get(
    client: &Client,
    key: &[u8],
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let Some(found) = client.get(key).await? else {
        match printer.format {
            Format::Table => complain("there is no such key"),
            Format::Json => writeln!(out, "{}", json!({ "found": false }))?,
        }
        return Ok(Exit::NotFound);
    };
    match printer.format {
        Format::Table if printer.hex => writeln!(out, "{}", json::hex(&found.value))?,
        Format::Table => {
            out.write_all(&found.value)?;
            out.write_all(b"\n")?;
        }
        Format::Json => {
            let mut object = Map::new();
            object.insert("found".to_owned(), json!(true));
            json::set_bytes(&mut object, "value", &found.value, printer.hex);
            object.insert("version".to_owned(), json::version(found.version));
            writeln!(out, "{}", Value::Object(object))?;
        }
    }
    Ok(Exit::Done)
}

/// Prints the bytes of a value and nothing else.
async fn get_raw(client: &Client, key: &[u8], out: &mut impl Write) -> Result<Exit, CliError> {
    let Some(found) = client.get(key).await? else {
        complain("there is no such key");
        return Ok(Exit::NotFound);
    };
    out.write_all(&found.value)?;
    Ok(Exit::Done)
}

/// Prints a message for people to standard error.
fn complain(message: &str) {
    logging::last_words(message);
}

/// Prints several keys in their order. The exit code is that of a key that could not be read, or else
/// that of a missing key.
async fn get_many(
    client: &Client,
    keys: &[Vec<u8>],
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let found = client.get_many(keys).await;
    let mut exit = Exit::Done;
    let mut objects = Vec::new();
    for (key, found) in keys.iter().zip(found) {
        if printer.format == Format::Json {
            objects.push(json::read_key(key, &found, printer.hex));
        }
        let word = |bytes: &[u8]| output::word(bytes, printer.hex);
        match found {
            Ok(Some(found)) if printer.format == Format::Table => {
                writeln!(out, "{}\t{}", word(key), word(&found.value))?;
            }
            Ok(Some(_)) => {}
            Ok(None) => {
                if printer.format == Format::Table {
                    complain(&format!("there is no such key: {}", word(key)));
                }
                if exit == Exit::Done {
                    exit = Exit::NotFound;
                }
            }
            Err(error) => {
                let error = CliError::from(error);
                if printer.format == Format::Table {
                    complain(&format!("{}: {}", word(key), error.message));
                }
                exit = error.exit;
            }
        }
    }
    if printer.format == Format::Json {
        writeln!(out, "{}", json!({ "results": objects }))?;
    }
    Ok(exit)
}

async fn compare_and_swap(
    client: &Client,
    (key, condition, value): (&[u8], &CasCondition, Option<&[u8]>),
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let condition = match condition {
        CasCondition::Absent => Condition::Absent,
        CasCondition::Exists => Condition::Exists,
        CasCondition::Value(value) => Condition::Value(value),
        CasCondition::Version(version) => Condition::Version(*version),
    };
    let outcome = match value {
        Some(value) => client.compare_and_swap(key, condition, value).await?,
        None => client.compare_and_delete(key, condition).await?,
    };
    match outcome {
        CasOutcome::Swapped { version } => {
            let facts = json!({ "swapped": true, "version": json::version(version) });
            printer.applied(out, facts, &format!("version {version}"))
        }
        CasOutcome::Failed { current } => {
            match (printer.format, current) {
                (Format::Json, _) => {
                    let current = current.map(json::version);
                    writeln!(out, "{}", json!({ "swapped": false, "current": current }))?;
                }
                (Format::Table, Some(version)) => complain(&format!(
                    "the condition failed; the value has version {version}"
                )),
                (Format::Table, None) => complain("the condition failed; no value"),
            }
            Ok(Exit::NotFound)
        }
        other => Err(CliError {
            exit: Exit::FateUnknown,
            message: format!(
                "the node answers with a result that this release does not know: {other:?}"
            ),
        }),
    }
}

async fn write(
    client: &Client,
    TypedBatch { batch, conditions }: &TypedBatch,
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let outcome = client.batch(batch).await?;
    let facts = batch_json::outcome(&outcome);
    match (outcome, printer.format) {
        (BatchOutcome::Written { version, numbers }, _) => {
            let numbers: String = numbers.iter().map(|n| format!(", {n}")).collect();
            printer.applied(out, facts, &format!("version {version}{numbers}"))
        }
        (_, Format::Json) => {
            writeln!(out, "{facts}")?;
            Ok(Exit::NotFound)
        }
        (BatchOutcome::Failed { condition, current }, Format::Table) => {
            let present = match current {
                Some(version) => format!("the value has version {version}"),
                None => "no value".to_owned(),
            };
            let name = match conditions.get(condition) {
                Some(name) => output::word(name.as_bytes(), false),
                None => format!("condition {}", condition + 1),
            };
            complain(&format!("{name} failed, nothing is written; {present}"));
            Ok(Exit::NotFound)
        }
        (_, Format::Table) => Ok(Exit::NotFound),
    }
}

/// Prints rows as they come. A JSON document begins with the first row or the end, so that nothing
/// is printed if the scan fails at once.
async fn scan(
    client: &Client,
    (options, limit): (ScanOptions, usize),
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let keys_only = options.keys_only;
    let mut rows = client.scan(options).limit(limit);
    let is_json = printer.format == Format::Json;
    let mut row = rows.next().await.transpose()?;
    if is_json {
        write!(out, "{{\"rows\":[")?;
    }
    let mut comma = "";
    while let Some(present) = &row {
        if is_json {
            write!(out, "{comma}{}", json::row(present, keys_only, printer.hex))?;
            comma = ",";
        } else {
            let word = |bytes: &[u8]| output::word(bytes, printer.hex);
            write!(out, "{}", word(&present.key))?;
            if !keys_only {
                write!(out, "\t{}", word(&present.value))?;
            }
            writeln!(out)?;
        }
        row = rows.next().await.transpose()?;
    }
    if is_json {
        writeln!(out, "]}}")?;
    }
    Ok(Exit::Done)
}
