//! The commands, one function each. [`prepare`] checks and parses the arguments (pure); [`perform`]
//! sends the request and prints the result.

use std::io::{Read as _, Write};

use rangedb_client::{Batch, BatchOutcome, CasOutcome, Client, Condition, ScanOptions};
use rangedb_server::admin::{batch as batch_json, json};
use serde_json::{Map, Value, json};

use super::args::{CasArgs, CliCommand, ConnectionArgs, Format, PutArgs, ScanArgs, WriteArgs};
use super::cluster::Show;
use super::input;
use super::output::{self, Printer};
use super::{Exit, Trouble};

/// Rows of one page of a scan.
const PAGE_ROWS: usize = 1000;
/// The longest value that is read from a file or standard input, in bytes: the database's limit.
const VALUE_LEN_MAX: u64 = 1 << 20;
/// The longest text of operations on standard input, in bytes. Any batch within the database's
/// limits fits.
const OPERATIONS_LEN_MAX: u64 = 32 << 20;

/// A command with checked arguments.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    Get {
        keys: Vec<Vec<u8>>,
    },
    Put {
        key: Vec<u8>,
        value: Vec<u8>,
    },
    Delete {
        key: Vec<u8>,
    },
    Cas {
        key: Vec<u8>,
        wanted: Wanted,
        value: Option<Vec<u8>>,
    },
    Incr {
        key: Vec<u8>,
        by: i64,
    },
    Scan {
        options: ScanOptions,
        /// Most rows of all pages.
        limit: usize,
    },
    Write {
        batch: Batch,
    },
    Status,
    Show(Show),
    /// An admin command that changes something.
    Order(String),
}

/// The condition of `cas`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Absent,
    Value(Vec<u8>),
    Version(u64),
}

/// Parses a command's arguments.
pub(super) fn prepare(command: &CliCommand) -> Result<Request, Trouble> {
    let hex = command.connection().hex;
    let bytes = |text: &String| input::bytes(text, hex);
    Ok(match command {
        CliCommand::Get { keys, .. } => Request::Get {
            keys: keys.iter().map(bytes).collect::<Result<_, _>>()?,
        },
        CliCommand::Put(args) => Request::Put {
            key: bytes(&args.key)?,
            value: put_value(args)?,
        },
        CliCommand::Delete { key, .. } => Request::Delete { key: bytes(key)? },
        CliCommand::Cas(args) => cas(args)?,
        CliCommand::Incr { key, by, .. } => Request::Incr {
            key: bytes(key)?,
            by: *by,
        },
        CliCommand::Scan(args) => scan_of(args)?,
        CliCommand::Write(args) => Request::Write {
            batch: batch(args)?,
        },
        CliCommand::Status { .. } => Request::Status,
        CliCommand::Node { .. } | CliCommand::Range { .. } | CliCommand::Config { .. } => {
            super::cluster::request(command)
        }
    })
}

fn read_limited(source: impl std::io::Read, len_max: u64, what: &str) -> Result<Vec<u8>, Trouble> {
    let mut bytes = Vec::new();
    source.take(len_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > len_max {
        return Err(Trouble::usage(format!(
            "{what} is longer than {len_max} bytes"
        )));
    }
    Ok(bytes)
}

fn put_value(args: &PutArgs) -> Result<Vec<u8>, Trouble> {
    if args.stdin {
        return read_limited(std::io::stdin().lock(), VALUE_LEN_MAX, "the value");
    }
    if let Some(path) = &args.file {
        let file = std::fs::File::open(path)
            .map_err(|error| Trouble::usage(format!("{}: {error}", path.display())))?;
        return read_limited(file, VALUE_LEN_MAX, "the value");
    }
    input::bytes(
        args.value.as_deref().unwrap_or_default(),
        args.connection.hex,
    )
}

fn cas(args: &CasArgs) -> Result<Request, Trouble> {
    let hex = args.connection.hex;
    let wanted = match (&args.if_value, args.if_version) {
        (Some(value), _) => Wanted::Value(input::bytes(value, hex)?),
        (None, Some(version)) => Wanted::Version(version),
        (None, None) => Wanted::Absent,
    };
    let value = args
        .value
        .as_deref()
        .map(|value| input::bytes(value, hex))
        .transpose()?;
    Ok(Request::Cas {
        key: input::bytes(&args.key, hex)?,
        wanted,
        value,
    })
}

fn scan_of(args: &ScanArgs) -> Result<Request, Trouble> {
    let bytes = |text: &String| input::bytes(text, args.connection.hex);
    let mut options = match &args.prefix {
        Some(prefix) => ScanOptions::prefix(bytes(prefix)?),
        None => {
            let mut interval = ScanOptions::default();
            interval.start = args.start.as_ref().map(bytes).transpose()?.map(Into::into);
            interval.end = args.end.as_ref().map(bytes).transpose()?.map(Into::into);
            interval
        }
    };
    options.page_size = PAGE_ROWS;
    options.reverse = args.reverse;
    options.keys_only = args.keys_only;
    let limit = args
        .limit
        .map(|rows| usize::try_from(rows).unwrap_or(usize::MAX));
    Ok(Request::Scan {
        options,
        limit: limit.unwrap_or(usize::MAX),
    })
}

fn batch(args: &WriteArgs) -> Result<Batch, Trouble> {
    let batch = if args.stdin {
        let bytes = read_limited(std::io::stdin().lock(), OPERATIONS_LEN_MAX, "the input")?;
        let text = String::from_utf8(bytes)
            .map_err(|_| Trouble::usage("standard input is not UTF-8; use key_hex, value_hex"))?;
        input::json_batch(&text, args.connection.hex)?
    } else {
        input::batch(args)?
    };
    if batch.is_empty() {
        return Err(Trouble::usage("there is nothing to write"));
    }
    Ok(batch)
}

/// Sends a request and prints its answer.
pub(super) async fn perform(
    client: &Client,
    request: Request,
    connection: &ConnectionArgs,
    out: &mut impl Write,
) -> Result<Exit, Trouble> {
    let printer = Printer {
        format: connection.format,
        hex: connection.hex,
    };
    match request {
        Request::Get { keys } => match keys.as_slice() {
            [key] => get(client, key, printer, out).await,
            keys => get_many(client, keys, printer, out).await,
        },
        Request::Put { key, value } => {
            let version = client.put(&key, &value).await?;
            printer.version(out, version)
        }
        Request::Delete { key } => {
            let deleted = client.delete(&key).await?;
            let facts = json!({ "version": deleted.version, "existed": deleted.existed });
            let words = if deleted.existed {
                "deleted"
            } else {
                "nothing was there"
            };
            printer.print(out, facts, &format!("{words}, version {}", deleted.version))
        }
        Request::Cas { key, wanted, value } => {
            compare_and_swap(client, (&key, &wanted, value.as_deref()), printer, out).await
        }
        Request::Incr { key, by } => {
            let done = client.increment(&key, by).await?;
            let facts = json!({ "value": done.value, "version": done.version });
            printer.print(out, facts, &done.value.to_string())
        }
        Request::Scan { options, limit } => scan(client, (options, limit), printer, out).await,
        Request::Write { batch } => write(client, &batch, printer, out).await,
        Request::Status => super::status::status(client, printer, out).await,
        Request::Show(show) => super::cluster::show(client, &show, printer, out).await,
        Request::Order(command) => super::cluster::order(client, &command, printer, out).await,
    }
}

async fn get(
    client: &Client,
    key: &[u8],
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, Trouble> {
    let Some(found) = client.get(key).await? else {
        match printer.format {
            Format::Table => eprintln!("rangedb: there is no such key"),
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
            object.insert("version".to_owned(), json!(found.version));
            writeln!(out, "{}", Value::Object(object))?;
        }
    }
    Ok(Exit::Done)
}

/// Prints several keys in their order. What cannot be read decides how the command exits, then what
/// is missing.
async fn get_many(
    client: &Client,
    keys: &[Vec<u8>],
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, Trouble> {
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
                    eprintln!("rangedb: there is no such key: {}", word(key));
                }
                if exit == Exit::Done {
                    exit = Exit::NotFound;
                }
            }
            Err(error) => {
                let trouble = Trouble::from(error);
                if printer.format == Format::Table {
                    eprintln!("rangedb: {}: {}", word(key), trouble.message);
                }
                exit = trouble.exit;
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
    (key, wanted, value): (&[u8], &Wanted, Option<&[u8]>),
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, Trouble> {
    let condition = match wanted {
        Wanted::Absent => Condition::Absent,
        Wanted::Value(value) => Condition::Value(value),
        Wanted::Version(version) => Condition::Version(*version),
    };
    let outcome = match value {
        Some(value) => client.compare_and_swap(key, condition, value).await?,
        None => client.compare_and_delete(key, condition).await?,
    };
    match outcome {
        CasOutcome::Swapped { version } => {
            let facts = json!({ "swapped": true, "version": version });
            printer.print(out, facts, &format!("version {version}"))
        }
        CasOutcome::Failed { current } => {
            match (printer.format, current) {
                (Format::Json, _) => {
                    writeln!(out, "{}", json!({ "swapped": false, "current": current }))?;
                }
                (Format::Table, Some(version)) => {
                    eprintln!("rangedb: the condition failed; the value has version {version}");
                }
                (Format::Table, None) => eprintln!("rangedb: the condition failed; no value"),
            }
            Ok(Exit::NotFound)
        }
    }
}

async fn write(
    client: &Client,
    batch: &Batch,
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, Trouble> {
    let outcome = client.batch(batch).await?;
    let facts = batch_json::outcome(&outcome);
    match (outcome, printer.format) {
        (BatchOutcome::Written { version, numbers }, _) => {
            let numbers: String = numbers.iter().map(|n| format!(", {n}")).collect();
            printer.print(out, facts, &format!("version {version}{numbers}"))
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
            let place = condition + 1;
            eprintln!("rangedb: condition {place} failed, nothing is written; {present}");
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
) -> Result<Exit, Trouble> {
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
