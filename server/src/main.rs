//! The binary `rangedb`: the node, and the command-line clients.

mod cli;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use rangedb_server::config::Config;
use rangedb_server::config::raw::{self, BadConfig, Key, RawConfig};
use rangedb_server::env::root::Root;
use rangedb_server::env::{huge_pages, signals, threads};
use rangedb_server::history::History;
use rangedb_server::node_settings::{self, Settings};
use rangedb_server::{check, logging, node};

/// An allocator that keeps freed pages, so that a shard does not wait for the kernel's memory-map
/// lock. The unit tests bring one that counts.
#[cfg(not(test))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The exit code for a command line or configuration that is not valid.
const EXIT_USAGE: u8 = 2;

/// RangeDB: a distributed, range-partitioned, strongly consistent key-value database.
#[derive(Debug, Parser)]
#[command(
    name = "rangedb",
    version,
    about,
    max_term_width = 100,
    after_help = "Of commands that ask a node, --addr, --cluster, --timeout, --format, --hex and the flags of \
                  TLS may also stand before the command."
)]
struct Arguments {
    #[command(flatten)]
    global: cli::GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a node until SIGTERM or SIGINT; a second one ends it at once. SIGHUP reads the file of
    /// --config again, as `rangedb reload` does.
    Start(Box<StartArgs>),
    /// Checks whether this machine, the settings and the data folder are fit for a node, and measures
    /// the disk for 5 s; the exit code is 1 if a check fails.
    Check(Box<CheckArgs>),
    /// Runs a cluster on this machine, in a folder for temporary files and on free ports, until Ctrl-C;
    /// then it removes the folder.
    Demo(cli::DemoArgs),
    /// Writes man pages and completions into a folder, for packages.
    #[command(hide = true)]
    Manual {
        /// The folder; made if it does not exist.
        folder: PathBuf,
    },
    /// Prints the release, the commit it is built from, the versions of its formats, and its features.
    Version(cli::VersionArgs),
    #[command(flatten)]
    Client(Box<cli::CliCommand>),
}

/// Arguments of `start`.
#[derive(Debug, Args)]
struct StartArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    /// Prints each setting and its source, and exits.
    #[arg(long)]
    print_config: bool,
}

/// Arguments of `check`: the settings that the node would be started with.
#[derive(Debug, Args)]
struct CheckArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    /// The format of results.
    #[arg(long, env = "RANGEDB_FORMAT", default_value = "table", value_enum)]
    format: cli::Format,
}

/// The settings of a node. Each can also be set in the environment, as RANGEDB_DATA_DIR and so on, or
/// in the file.
#[derive(Clone, Debug, Args)]
struct SettingsArgs {
    /// Folder of the node's data; made if it does not exist.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Address for clients and other nodes; 127.0.0.1:7400 by default.
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Address at which other nodes and clients reach this one; --listen by default.
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Addresses of the cluster's nodes. A node with an empty folder joins them; one that has data
    /// looks for its cluster there. To form a new cluster, list all its nodes, this one included.
    #[arg(long, value_name = "LIST")]
    join: Option<String>,
    /// Forms a new cluster of N empty nodes, all started with the same --join.
    #[arg(long, value_name = "N")]
    bootstrap_expect: Option<String>,
    /// Secret that proves to other nodes that this one belongs to the cluster; better set as
    /// RANGEDB_CLUSTER_SECRET or in the file.
    #[arg(long, value_name = "WORDS")]
    cluster_secret: Option<String>,
    /// Which clients may connect without TLS: none if it is required, all if it is optional or off;
    /// required by default once there is a certificate.
    #[arg(long, value_name = "required|optional|off")]
    tls: Option<String>,
    /// PEM file with the certificate that the node shows to clients, and those that lead from it to the
    /// one that they trust.
    #[arg(long, value_name = "FILE", value_parser = path)]
    tls_cert: Option<PathBuf>,
    /// PEM file with the key of that certificate.
    #[arg(long, value_name = "FILE", value_parser = path)]
    tls_key: Option<PathBuf>,
    /// PEM file with certificates: clients must show one that was signed by one of these.
    #[arg(long, value_name = "FILE", value_parser = path)]
    tls_ca: Option<PathBuf>,
    /// Address of the node's HTTP: the page, the API, health and metrics; 127.0.0.1:7480 by default.
    #[arg(long, value_name = "HOST:PORT")]
    http: Option<String>,
    /// Names by which requests over HTTP may call this node, beside its own names and addresses.
    #[arg(long, value_name = "LIST")]
    http_hosts: Option<String>,
    /// Origins of other sites whose pages may use the API over HTTP, such as `https://example.com`.
    #[arg(long, value_name = "LIST")]
    http_origins: Option<String>,
    /// Number of shards; it may differ from one start to the next. By default that of the folder, or one
    /// for each processor if the folder is new.
    #[arg(long, value_name = "N")]
    shards: Option<String>,
    /// Processors that all threads stay on, such as 0,2-3; all by default.
    #[arg(long, value_name = "LIST")]
    cpus: Option<String>,
    /// Memory to use, such as 4GiB; by default half of what the machine or control group allows.
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Part of the memory that holds rows which were read lately, such as 1GiB; a quarter by default,
    /// 0 for none.
    #[arg(long, value_name = "SIZE")]
    row_cache: Option<String>,
    /// Borders of a new cluster's first ranges; `\xNN` stands for a byte, `\,` for a comma.
    #[arg(long, value_name = "K1,K2")]
    split_at: Option<String>,
    /// How long old versions are kept, such as 90s, 10m or 1.5h; 10m by default.
    #[arg(long, value_name = "TIME")]
    gc_retention: Option<String>,
    /// How long the node goes on serving after it was told to stop, while /readyz says 503, so that load
    /// balancers notice it, such as 5s; 0s by default.
    #[arg(long, value_name = "TIME")]
    drain_wait: Option<String>,
    /// A TOML file with any of these settings.
    #[arg(long, value_name = "FILE", env = "RANGEDB_CONFIG")]
    config: Option<PathBuf>,
    /// Format of logs: text or json; text by default.
    #[arg(long, value_name = "FORMAT")]
    log: Option<String>,
    /// Lowest level of log lines: error, warn, info, debug or trace; info by default.
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// A request that takes as long is logged, with the time of each step; 100ms by default, 0ms for
    /// none.
    #[arg(long, value_name = "TIME")]
    slow_request: Option<String>,
}

fn main() -> ExitCode {
    let Arguments { global, command } = rangedb_client::flags::parse();
    let (is_local, has_format, has_tls) = match &command {
        Command::Start(_) => (true, false, true),
        Command::Manual { .. } | Command::Demo(_) => (true, false, false),
        Command::Check(_) => (true, true, true),
        Command::Version(_) => (true, true, false),
        Command::Client(_) => (false, true, true),
    };
    let meaningless = global.meaningless(has_format, has_tls);
    if let Some(flag) = meaningless.filter(|_| is_local) {
        return usage(&format!(
            "this command asks no node, so {flag} means nothing"
        ));
    }
    match command {
        Command::Start(arguments) => start(&arguments),
        Command::Check(arguments) => check(&arguments),
        Command::Manual { folder } => match rangedb_manual::write(&Arguments::command(), &folder) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => usage(&format!("cannot write into {}: {error}", folder.display())),
        },
        Command::Demo(arguments) => cli::run_demo(&arguments),
        Command::Version(arguments) => cli::print_version(&arguments),
        Command::Client(command) => {
            for warning in raw::misspelt(std::env::vars_os()) {
                logging::last_words(&warning);
            }
            cli::run(*command)
        }
    }
}

/// A path in UTF-8: settings are text. The type is that of the flags of the same names which say how clients
/// connect, since clap hands on the values of those that stand before the command.
fn path(text: &str) -> Result<PathBuf, std::convert::Infallible> {
    Ok(text.into())
}

/// The text of such a path.
fn text(path: &Option<PathBuf>) -> Option<String> {
    let text = path.as_ref().and_then(|path| path.to_str());
    text.map(str::to_owned)
}

/// Collects the settings of the file, the environment and the flags, with warnings about variables
/// that name no setting.
fn layers(arguments: &SettingsArgs) -> Result<(RawConfig, Vec<String>), BadConfig> {
    let mut raw = RawConfig::new();
    if let Some(file) = &arguments.config {
        raw.add_file(file)?;
    }
    let warnings = raw.add_variables(std::env::vars_os())?;
    raw.add_flag(Key::DataDir, arguments.data_dir.as_ref());
    raw.add_flag(Key::Listen, arguments.listen.as_ref());
    raw.add_flag(Key::Advertise, arguments.advertise.as_ref());
    raw.add_flag(Key::Join, arguments.join.as_ref());
    raw.add_flag(Key::BootstrapExpect, arguments.bootstrap_expect.as_ref());
    raw.add_flag(Key::ClusterSecret, arguments.cluster_secret.as_ref());
    raw.add_flag(Key::Http, arguments.http.as_ref());
    raw.add_flag(Key::HttpHosts, arguments.http_hosts.as_ref());
    raw.add_flag(Key::HttpOrigins, arguments.http_origins.as_ref());
    raw.add_flag(Key::Shards, arguments.shards.as_ref());
    raw.add_flag(Key::Cpus, arguments.cpus.as_ref());
    raw.add_flag(Key::Memory, arguments.memory.as_ref());
    raw.add_flag(Key::RowCache, arguments.row_cache.as_ref());
    raw.add_flag(Key::SplitAt, arguments.split_at.as_ref());
    raw.add_flag(Key::GcRetention, arguments.gc_retention.as_ref());
    raw.add_flag(Key::DrainWait, arguments.drain_wait.as_ref());
    raw.add_flag(Key::Tls, arguments.tls.as_ref());
    raw.add_flag(Key::TlsCert, text(&arguments.tls_cert).as_ref());
    raw.add_flag(Key::TlsKey, text(&arguments.tls_key).as_ref());
    raw.add_flag(Key::TlsCa, text(&arguments.tls_ca).as_ref());
    raw.add_flag(Key::Log, arguments.log.as_ref());
    raw.add_flag(Key::LogLevel, arguments.log_level.as_ref());
    raw.add_flag(Key::SlowRequest, arguments.slow_request.as_ref());
    Ok((raw, warnings))
}

/// Prints all checks. Without --data-dir the disk of the current folder is checked.
fn check(arguments: &CheckArgs) -> ExitCode {
    let (mut raw, warnings) = match layers(&arguments.settings) {
        Ok(layers) => layers,
        Err(error) => return usage(&error.to_string()),
    };
    for warning in warnings {
        logging::last_words(&warning);
    }
    let has_folder = !raw.text(Key::DataDir).is_empty();
    if !has_folder {
        raw.add_flag(Key::DataDir, Some(&".".to_owned()));
    }
    let config = match Config::validate_all(&raw) {
        Ok(config) => config,
        Err(error) => return usage(&error.to_string()),
    };
    let mut checks = check::all(&Root::of_machine(), &config, check::WRITES_TIME);
    if has_folder {
        checks.push(check::data_dir(&config));
    }
    let text = match arguments.format {
        cli::Format::Table => check::to_text(&checks),
        cli::Format::Json => format!("{}\n", check::to_json(&checks)),
    };
    if let Err(error) = write!(std::io::stdout(), "{text}") {
        return cli::cannot_print(error);
    }
    match check::worst(&checks) {
        check::State::Fail => ExitCode::FAILURE,
        check::State::Ok | check::State::Warn => ExitCode::SUCCESS,
    }
}

/// Prints why a command line, a configuration or a path on it is not valid.
fn usage(message: &str) -> ExitCode {
    logging::last_words(message);
    ExitCode::from(EXIT_USAGE)
}

fn start(arguments: &StartArgs) -> ExitCode {
    signals::ignore_meaningless();
    let (raw, warnings) = match layers(&arguments.settings) {
        Ok(layers) => layers,
        Err(error) => return usage(&error.to_string()),
    };
    if arguments.print_config {
        return match write!(std::io::stdout(), "{}", raw.print()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => cli::cannot_print(error),
        };
    }
    let config = match Config::validate_all(&raw) {
        Ok(config) => config,
        Err(error) => return usage(&error.to_string()),
    };
    // This comes first, since every thread that is started later inherits it.
    if let Err(error) = threads::stay_on(&config.cpus) {
        return usage(&format!("cannot stay on --cpus: {error}"));
    }
    let history = History::new();
    if let Err(error) = logging::start(config.logs.format, &config.logs.level, &history) {
        return usage(&error);
    }
    logging::abort_on_panic();
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    huge_pages::begin_without();
    let again = arguments.settings.clone();
    let read = move || {
        if let Some(file) = &again.config {
            node_settings::check_file(file)?;
        }
        layers(&again).map(|(raw, _)| raw)
    };
    let settings = Settings::new(raw, config.clone(), Box::new(read));
    match node::run(&config, &settings, &history) {
        Ok(()) => {
            logging::flush();
            ExitCode::SUCCESS
        }
        Err(error) => {
            logging::last_words(&format!("the node ends: {error}"));
            ExitCode::FAILURE
        }
    }
}
