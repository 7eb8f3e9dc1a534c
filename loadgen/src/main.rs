//! `loadgen`: arguments, exit codes, and what is printed where. Results go to standard output,
//! progress and complaints to standard error. Exit codes: 0 measured (or checked, without a
//! violation), 1 nothing succeeded, reads found nothing, a violation, or the second of two results is
//! worse, 2 usage, 130 stopped by a signal.

use std::io::{self, ErrorKind, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::CommandFactory;
use serde_json::{Map, Value, json};

use rangedb_loadgen::args::{CheckArgs, Cli, Command, CompareArgs, DriveArgs, ScanArgs};
use rangedb_loadgen::check::clients;
use rangedb_loadgen::client::ClientDatabase;
use rangedb_loadgen::compare::Verdict;
use rangedb_loadgen::driver::{Drive, Measured, Watch};
use rangedb_loadgen::etcd::EtcdDatabase;
use rangedb_loadgen::report::{self, Format};
use rangedb_loadgen::series::Interval;
use rangedb_loadgen::stop::{EXIT_STOPPED, Stop};
use rangedb_loadgen::workload::{Plan, Workload};
use rangedb_loadgen::{compare, driver, hdr};

/// The database is to be measured, not the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EXIT_FAILED: u8 = 1;
const EXIT_USAGE: u8 = 2;

enum CliError {
    Usage(String),
    Failed(String),
}

fn main() -> ExitCode {
    let result = match rangedb_client::flags::parse::<Cli>().command {
        Command::Load(args) => drive(&args, true),
        Command::Run(args) => drive(&args, false),
        Command::Scan(args) => scan(&args),
        Command::Check(args) => check(&args),
        Command::Compare(args) => compare(&args),
        Command::Manual { folder } => rangedb_manual::write(&Cli::command(), &folder)
            .map(|()| ExitCode::SUCCESS)
            .map_err(|error| {
                CliError::Usage(format!("cannot write into {}: {error}", folder.display()))
            }),
        Command::SplitKeys(args) => (args.list().map_err(CliError::Usage))
            .and_then(|list| say(&format!("{list}\n")))
            .map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        let (message, code) = match error {
            CliError::Usage(message) => (message, EXIT_USAGE),
            CliError::Failed(message) => (message, EXIT_FAILED),
        };
        eprintln!("loadgen: {message}");
        ExitCode::from(code)
    })
}

fn drive(args: &DriveArgs, load: bool) -> Result<ExitCode, CliError> {
    let settings = args.drive(load).map_err(CliError::Usage)?;
    let plan = args.plan(load).map_err(CliError::Usage)?;
    let stop = Stop::on_signals().map_err(CliError::Failed)?;
    let run = |to_log: &mut dyn FnMut(&Interval)| {
        let mut each_second = |interval: &Interval| {
            // The run goes on if nobody reads this.
            let _ = writeln!(io::stderr(), "{}", report::progress_line(&interval.into()));
            to_log(interval);
        };
        let watch = Watch {
            stop,
            each_second: &mut each_second,
        };
        drive_database(args, (settings, &plan, load), watch)
    };
    let output = &args.output;
    let measured = hdr::with_interval_log(output.hlog.as_deref(), run).flatten();
    let measured = measured.map_err(CliError::Failed)?;
    if let Some(path) = &output.hgrm {
        let all = measured.probe.all_latencies();
        hdr::write_distribution(path, &all).map_err(CliError::Failed)?;
    }
    let exit = print(&measured, conditions(args, load), output.format)?;
    if measured.is_stopped {
        return Ok(ExitCode::from(EXIT_STOPPED));
    }
    if measured.probe.missing > 0 && !args.allow_missing {
        return Err(CliError::Failed(format!(
            "{} reads found nothing where a record was expected: load them first, with loadgen load \
             --records {}, or give --allow-missing",
            measured.probe.missing, args.records
        )));
    }
    Ok(exit)
}

/// Performs the operations on the database that the arguments name.
fn drive_database(
    args: &DriveArgs,
    (settings, plan, load): (Drive, &Arc<Plan>, bool),
    watch: Watch<'_>,
) -> Result<Measured, String> {
    let addresses = &args.address.addresses;
    if args.etcd {
        // Connections are spread over the nodes in turn.
        let made = AtomicUsize::new(0);
        let connect = async || {
            let place = made.fetch_add(1, Ordering::Relaxed) % addresses.len().max(1);
            let address = addresses.get(place).ok_or("there is no address")?;
            EtcdDatabase::connect(address).await
        };
        driver::drive(settings, (plan, load), watch, connect)
    } else {
        let cluster = args.address.binding();
        let tls = args.address.tls.options()?;
        let connect = async || ClientDatabase::connect(addresses, &cluster, tls.clone()).await;
        driver::drive(settings, (plan, load), watch, connect)
    }
}

/// Compares two results.
fn compare(args: &CompareArgs) -> Result<ExitCode, CliError> {
    let [a, b] = [&args.a, &args.b].map(|path| compare::read(path).map_err(CliError::Usage));
    let (text, verdict) = compare::compare(&a?, &b?, args.tolerance / 100.0);
    say(&text)?;
    Ok(match verdict {
        Verdict::Worse => ExitCode::from(EXIT_FAILED),
        Verdict::Better | Verdict::Mixed | Verdict::Same => ExitCode::SUCCESS,
    })
}

/// Prints a result; gives the exit code.
fn print(
    measured: &Measured,
    conditions: Map<String, Value>,
    format: Format,
) -> Result<ExitCode, CliError> {
    match format {
        Format::Table => say(&report::run_table(measured, &conditions))?,
        Format::Json => say(&format!("{}\n", report::run_json(measured, conditions)))?,
    }
    Ok(match measured.probe.operations {
        0 => ExitCode::from(EXIT_FAILED),
        _ => ExitCode::SUCCESS,
    })
}

/// Prints a result. A reader that has seen enough of it is no failure.
fn say(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(CliError::Failed(format!(
            "cannot print the result: {error}"
        ))),
        _ => Ok(()),
    }
}

fn scan(args: &ScanArgs) -> Result<ExitCode, CliError> {
    let scanned = runtime()?.block_on(async {
        let binding = args.address.binding();
        let (addresses, tls) = (&args.address.addresses, args.address.tls.options()?);
        let database = ClientDatabase::connect(addresses, &binding, tls).await?;
        database.scan_everything().await
    });
    let (measured, bytes) = scanned.map_err(CliError::Failed)?;
    let mut conditions = Map::new();
    conditions.insert("command".into(), json!("scan"));
    conditions.insert("bytes".into(), json!(bytes));
    print(&measured, conditions, args.format)
}

fn runtime() -> Result<tokio::runtime::LocalRuntime, CliError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default())
        .map_err(|error| CliError::Failed(format!("cannot start a runtime: {error}")))
}

fn conditions(args: &DriveArgs, load: bool) -> Map<String, Value> {
    let name = |value: &dyn std::fmt::Debug| format!("{value:?}").to_lowercase();
    let mut conditions = Map::new();
    let mut set = |name: &str, value: Value| conditions.insert(name.to_owned(), value);
    set("command", json!(if load { "load" } else { "run" }));
    if !load {
        set("workload", json!(name(&args.workload)));
        set("distribution", json!(name(&args.distribution())));
    }
    set("records", json!(args.records));
    set("connections", json!(args.connections));
    set("depth", json!(args.depth));
    if args.batch > 1 && !load {
        set("batch", json!(args.batch));
    }
    set("threads", json!(args.threads));
    set("key_size", json!(args.keys.key_size));
    if args.keys.ordered {
        set("ordered", json!(true));
    }
    if args.workload != Workload::C || load {
        set("value_size", json!(args.value_size));
    }
    set("rate", json!(args.rate));
    if args.operations.is_some() {
        set("to_do", json!(args.operations));
    }
    set("seed", json!(args.seed));
    conditions
}

fn check(args: &CheckArgs) -> Result<ExitCode, CliError> {
    let options = args.options(rand::random()).map_err(CliError::Usage)?;
    let checked = runtime()?
        .block_on(async {
            let mut databases = Vec::new();
            let cluster = args.address.binding();
            for _ in 0..options.clients {
                let (addresses, tls) = (&args.address.addresses, args.address.tls.options()?);
                databases.push(ClientDatabase::connect(addresses, &cluster, tls).await?);
            }
            Ok(clients::run(databases, options).await)
        })
        .map_err(CliError::Failed)?;
    let mut facts = Map::new();
    facts.insert("command".into(), json!("check"));
    facts.insert("seconds".into(), json!(args.duration.as_secs_f64()));
    facts.insert("clients".into(), json!(args.clients));
    facts.insert("keys".into(), json!(args.keys));
    facts.insert("errors".into(), json!(checked.errors));
    match args.format {
        Format::Table => say(&report::check_table(&checked.verdict, &facts))?,
        Format::Json => say(&format!(
            "{}\n",
            report::check_json(&checked.verdict, facts)
        ))?,
    }
    if let (Format::Json, Some((key, history))) = (args.format, checked.verdict.smallest()) {
        eprintln!("smallest failing history, of key {key}:\n{history}");
    }
    let is_good = checked.verdict.violations.is_empty() && checked.answered > 0;
    Ok(if is_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_FAILED)
    })
}
