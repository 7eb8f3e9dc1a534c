//! The command line of `loadgen`, and how it becomes a plan. Usage errors are texts.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::check::clients::CheckOptions;
use crate::client::{ClusterId, TlsArgs};
use crate::distribution::{Distribution, DistributionKind};
use crate::driver::Drive;
use crate::keys::KeyLayout;
use crate::report::Format;
use crate::workload::{Plan, Workload};

/// The measured time if nothing else bounds it.
const USUAL_DURATION: Duration = Duration::from_secs(10);
/// Most clients, each with its own connections.
const CONNECTIONS_MAX: usize = 10_000;
/// Most operations in flight on one connection: the protocol's limit.
const DEPTH_MAX: usize = 1024;
/// Most gets in one request: the protocol's limit.
const BATCH_MAX: usize = 4096;
/// Longest value: the database's limit.
const VALUE_SIZE_MAX: usize = 1 << 20;
/// Most ranges of `split-keys`.
const RANGES_MAX: u64 = 10_000;

/// Drives a RangeDB node or cluster, and checks what it answers.
#[derive(Debug, Parser)]
#[command(name = "loadgen", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Writes every record once (--duration and --warmup mean nothing here).
    Load(DriveArgs),
    /// Runs a workload over loaded records and measures it.
    Run(DriveArgs),
    /// Reads every row of the database once, in key order, and measures it.
    Scan(ScanArgs),
    /// Lets clients write and read few keys, and checks that what they saw is linearizable.
    Check(CheckArgs),
    /// Writes man pages and completions into a folder, for packages.
    #[command(hide = true)]
    Manual {
        /// The folder; made if it does not exist.
        folder: PathBuf,
    },
    /// Compares two results that --format json printed: the ratios of rate and latencies, and a verdict on
    /// the second. The exit code is 1 if it is worse.
    Compare(CompareArgs),
    /// Prints the --split-at list that makes equal ranges of the records.
    SplitKeys(SplitKeysArgs),
}

/// The database's addresses.
#[derive(Clone, Debug, Args)]
pub struct AddressArgs {
    /// Addresses of nodes, tried in turn.
    #[arg(
        long = "addr",
        env = "RANGEDB_ADDR",
        default_value = "127.0.0.1:7400",
        value_name = "HOST:PORT[,HOST:PORT...]",
        value_delimiter = ',',
        value_parser = parse_address
    )]
    pub addresses: Vec<String>,
    /// The id of the cluster that the nodes must belong to; a node of another one is not used.
    /// By default that of the first node that answers. (Means nothing with --etcd.)
    #[arg(long, env = "RANGEDB_CLUSTER", value_name = "ID")]
    pub cluster: Option<ClusterId>,
    /// How connections are encrypted.
    #[command(flatten)]
    pub tls: TlsArgs,
}

impl AddressArgs {
    /// The cluster to which all clients of this run are bound, once it is known.
    pub fn binding(&self) -> OnceLock<ClusterId> {
        self.cluster.map(OnceLock::from).unwrap_or_default()
    }
}

/// Settings of `load` and `run`.
#[derive(Clone, Debug, Args)]
pub struct DriveArgs {
    /// Where the database is.
    #[command(flatten)]
    pub address: AddressArgs,
    /// Treat the addresses as etcd's, to compare: gets and puts alone (workload c or write).
    #[arg(long)]
    pub etcd: bool,
    /// Mix of operations: YCSB's a to f, or puts alone.
    #[arg(long, default_value = "a", value_enum)]
    pub workload: Workload,
    /// Records that are loaded.
    #[arg(long, default_value = "100000", value_parser = parse_count, value_name = "N")]
    pub records: u64,
    /// Measured time, such as 500ms, 90s or 1.5m; a number without a unit counts seconds [default: 10s,
    /// or with --operations as long as they take].
    #[arg(long, value_parser = rangedb_duration::parse, value_name = "TIME")]
    pub duration: Option<Duration>,
    /// Operations to measure, such as 50000, 50k or 1e6. With --duration it ends with whichever is first.
    #[arg(long, value_parser = parse_count, value_name = "N")]
    pub operations: Option<u64>,
    /// Time before the measured time, given in the same way.
    #[arg(long, default_value = "2s", value_parser = rangedb_duration::parse, value_name = "TIME")]
    pub warmup: Duration,
    /// Clients, each with connections of its own.
    #[arg(long, default_value_t = 16, value_name = "C")]
    pub connections: usize,
    /// Operations in flight on each connection.
    #[arg(long, default_value_t = 1, value_name = "D")]
    pub depth: usize,
    /// Gets in one request. Each counts as an operation; latency and --rate are those of the requests.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub batch: usize,
    /// Threads that share the connections.
    #[arg(long, default_value_t = 1, value_name = "T")]
    pub threads: usize,
    /// How records are chosen [default: latest for d, uniform for write, else zipfian].
    #[arg(long, value_enum)]
    pub distribution: Option<DistributionKind>,
    /// How keys look.
    #[command(flatten)]
    pub keys: KeyArgs,
    /// Bytes of a value.
    #[arg(long, default_value_t = 128)]
    pub value_size: usize,
    /// Operations begun per second, such as 500 or 5k, answered or not [default: as fast as answers
    /// come].
    #[arg(long, value_parser = parse_number, value_name = "R")]
    pub rate: Option<f64>,
    /// Seed of the random choice of operations.
    #[arg(long, default_value_t = 1, value_name = "S")]
    pub seed: u64,
    /// Takes it for no error if reads find nothing, as where nothing was loaded.
    #[arg(long)]
    pub allow_missing: bool,
    /// What is written besides, and how the result is printed.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// The output of `load` and `run`.
#[derive(Clone, Debug, Args)]
pub struct OutputArgs {
    /// Writes a histogram of each second into this file, as an interval log of HdrHistogram; the warm-up
    /// has the tag `warmup`.
    #[arg(long, value_name = "FILE")]
    pub hlog: Option<PathBuf>,
    /// Writes the percentile distribution of all latencies into this file, as HdrHistogram's plotter reads
    /// it, in milliseconds.
    #[arg(long, value_name = "FILE")]
    pub hgrm: Option<PathBuf>,
    /// How the result is printed.
    #[arg(long, default_value = "table", value_enum)]
    pub format: Format,
}

/// Settings of `compare`.
#[derive(Clone, Debug, Args)]
pub struct CompareArgs {
    /// The first result.
    #[arg(value_name = "A.json")]
    pub a: PathBuf,
    /// The second result.
    #[arg(value_name = "B.json")]
    pub b: PathBuf,
    /// The difference in percent that counts as none.
    #[arg(long, default_value = "5", value_parser = parse_number, value_name = "PERCENT")]
    pub tolerance: f64,
}

/// Settings of `scan`.
#[derive(Clone, Debug, Args)]
pub struct ScanArgs {
    /// Where the database is.
    #[command(flatten)]
    pub address: AddressArgs,
    /// How the result is printed.
    #[arg(long, default_value = "table", value_enum)]
    pub format: Format,
}

/// Settings of `check`.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// Where the database is.
    #[command(flatten)]
    pub address: AddressArgs,
    /// Time to run, such as 500ms, 90s or 1.5m; a number without a unit counts seconds.
    #[arg(long, default_value = "10s", value_parser = rangedb_duration::parse, value_name = "TIME")]
    pub duration: Duration,
    /// Clients that run at the same time.
    #[arg(long, default_value_t = 16, value_name = "C")]
    pub clients: u32,
    /// Keys that they share.
    #[arg(long, default_value_t = 8, value_name = "K")]
    pub keys: u32,
    /// Seed of the random choice of operations.
    #[arg(long, default_value_t = 1, value_name = "S")]
    pub seed: u64,
    /// How the result is printed.
    #[arg(long, default_value = "table", value_enum)]
    pub format: Format,
}

/// Settings of `split-keys`.
#[derive(Clone, Debug, Args)]
pub struct SplitKeysArgs {
    /// Number of ranges.
    #[arg(value_name = "N")]
    pub ranges: u64,
    /// Records that will be loaded.
    #[arg(long, default_value = "100000", value_parser = parse_count, value_name = "R")]
    pub records: u64,
    /// How keys look.
    #[command(flatten)]
    pub keys: KeyArgs,
}

/// How the keys of records look.
#[derive(Clone, Copy, Debug, Args)]
pub struct KeyArgs {
    /// Bytes of a key.
    #[arg(long, default_value_t = 16)]
    pub key_size: usize,
    /// Keys are in the order of the records' numbers, so that `load` with one thread writes in key order;
    /// else neighbouring records lie far apart.
    #[arg(long)]
    pub ordered: bool,
}

impl KeyArgs {
    /// The layout of the keys of so many records.
    fn layout(self, records: u64) -> Result<KeyLayout, String> {
        KeyLayout::new(self.key_size, records, self.ordered)
    }
}

/// An address without the blanks around it, such as stand in a list after its commas.
fn parse_address(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("an address is HOST:PORT, such as localhost:7400".to_owned()),
        address => Ok(address.to_owned()),
    }
}

/// A number such as 5000, 5k, 1.5M or 5e3.
fn parse_number(text: &str) -> Result<f64, String> {
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1e3),
        Some(b'M') => (&text[..text.len() - 1], 1e6),
        Some(b'G') => (&text[..text.len() - 1], 1e9),
        _ => (text, 1.0),
    };
    let number = digits.parse::<f64>().ok().map(|number| number * factor);
    let number = number.filter(|number| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| "use a number such as 5000, 5k, 1.5M or 5e3".to_owned())
}

/// A whole number such as 5000, 5k, 1.5M or 5e3.
fn parse_count(text: &str) -> Result<u64, String> {
    if let Ok(count) = text.parse() {
        return Ok(count);
    }
    let number = parse_number(text)?;
    // Every whole number up to this one is exact.
    let is_exact = number.fract() == 0.0 && number <= (1_u64 << 53) as f64;
    if is_exact {
        return Ok(number as u64);
    }
    Err("it is no whole number".to_owned())
}

fn within(name: &str, number: u64, most: u64) -> Result<(), String> {
    if (1..=most).contains(&number) {
        return Ok(());
    }
    Err(format!("--{name} must be 1 to {most}, not {number}"))
}

impl DriveArgs {
    /// The distribution by which records are chosen.
    pub fn distribution(&self) -> DistributionKind {
        self.distribution
            .unwrap_or_else(|| self.workload.usual_distribution())
    }

    /// The operations to perform. Takes long for many records that are not chosen uniformly.
    pub fn plan(&self, load: bool) -> Result<Arc<Plan>, String> {
        within("records", self.records, u64::MAX / 2)?;
        if self.value_size > VALUE_SIZE_MAX {
            return Err(format!("--value-size must be at most {VALUE_SIZE_MAX}"));
        }
        let layout = self.keys.layout(self.records)?;
        let kind = if load {
            DistributionKind::Uniform
        } else {
            self.distribution()
        };
        let distribution = Distribution::new(kind, self.records);
        let shape = (self.value_size, self.records, self.seed);
        Ok(Arc::new(Plan::new(
            self.workload,
            distribution,
            layout,
            shape,
        )))
    }

    /// How fast and with how many connections to perform them.
    pub fn drive(&self, load: bool) -> Result<Drive, String> {
        within(
            "connections",
            self.connections as u64,
            CONNECTIONS_MAX as u64,
        )?;
        within("depth", self.depth as u64, DEPTH_MAX as u64)?;
        within("batch", self.batch as u64, BATCH_MAX as u64)?;
        if self.etcd && self.batch > 1 {
            return Err("--batch cannot be used with --etcd".to_owned());
        }
        within("threads", self.threads as u64, CONNECTIONS_MAX as u64)?;
        if self
            .rate
            .is_some_and(|rate| !(rate.is_finite() && (0.001..=1e9).contains(&rate)))
        {
            return Err("--rate must be a number of operations a second".to_owned());
        }
        if self.duration.is_some_and(|time| time.is_zero()) || self.operations == Some(0) {
            return Err("--duration and --operations must not be 0".to_owned());
        }
        if load && self.operations.is_some() {
            return Err("load writes each record once: use --records".to_owned());
        }
        let usual = self.operations.is_none().then_some(USUAL_DURATION);
        let duration = self.duration.or(usual);
        Ok(Drive {
            connections: self.connections,
            depth: self.depth,
            batch: self.batch,
            threads: self.threads,
            rate: self.rate,
            warmup: if load { Duration::ZERO } else { self.warmup },
            duration: duration.filter(|_| !load),
            operations: self.operations,
            seed: self.seed,
        })
    }
}

impl CheckArgs {
    /// The options of the check; `run` makes its keys unique.
    pub fn options(&self, run: u64) -> Result<CheckOptions, String> {
        within("clients", u64::from(self.clients), 1024)?;
        within("keys", u64::from(self.keys), 1 << 20)?;
        Ok(CheckOptions {
            clients: self.clients,
            keys: self.keys,
            duration: self.duration,
            seed: self.seed,
            run,
        })
    }
}

impl SplitKeysArgs {
    /// The list for `--split-at`.
    pub fn list(&self) -> Result<String, String> {
        if !(1..=RANGES_MAX).contains(&self.ranges) {
            return Err(format!("N must be 1 to {RANGES_MAX}, not {}", self.ranges));
        }
        let layout = self.keys.layout(self.records)?;
        Ok(layout.split_keys(self.ranges, self.records).join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn documented_command_lines_are_understood() {
        let line = "loadgen run --addr localhost:1,[::1]:2 --workload write --records 10 \
                    --duration 0.5 --warmup 1 --connections 2 --depth 3 --threads 4 \
                    --distribution zipfian --key-size 16 --value-size 128 --rate 5.5 --seed 9 \
                    --batch 5 --format json";
        let Command::Run(args) = Cli::parse_from(line.split_whitespace()).command else {
            panic!("not run");
        };
        assert_eq!(args.address.addresses, ["localhost:1", "[::1]:2"]);
        let drive = args.drive(false).unwrap();
        assert_eq!((drive.connections, drive.depth, drive.threads), (2, 3, 4));
        assert_eq!(drive.batch, 5);
        assert_eq!(drive.duration, Some(Duration::from_millis(500)));
        assert_eq!(drive.warmup, Duration::from_secs(1));
        assert_eq!(args.plan(false).unwrap().value_size, 128);
        for (text, duration) in [
            ("", Duration::from_secs(10)),
            ("--duration 10s --operations 5", Duration::from_secs(10)),
            ("--duration 250ms", Duration::from_millis(250)),
            ("--duration 1.5m", Duration::from_secs(90)),
            ("--duration 2h", Duration::from_hours(2)),
        ] {
            let line = format!("loadgen run {text}");
            let Command::Run(args) = Cli::parse_from(line.split_whitespace()).command else {
                panic!("not run");
            };
            let drive = args.drive(false).expect("it can be done");
            assert_eq!(drive.duration, Some(duration), "{text}");
        }
        let line = "loadgen run --operations 1e6 --records 2.5M --rate 5k --allow-missing \
                    --hlog a.hlog --hgrm a.hgrm";
        let Command::Run(args) = Cli::parse_from(line.split_whitespace()).command else {
            panic!("not run");
        };
        let drive = args.drive(false).expect("it can be done");
        assert_eq!((drive.operations, drive.duration), (Some(1_000_000), None));
        assert_eq!((drive.rate, args.records), (Some(5000.0), 2_500_000));
        assert!(args.allow_missing && args.output.hlog.is_some() && args.output.hgrm.is_some());
        let blanks = ["loadgen", "scan", "--addr", "a:1, b:2"];
        let Command::Scan(args) = Cli::parse_from(blanks).command else {
            panic!("not scan");
        };
        assert_eq!(args.address.addresses, ["a:1", "b:2"]);
        for line in [
            "loadgen load --workload a",
            "loadgen scan --addr a:1 --format json",
            "loadgen check --addr a:1 --duration 3 --clients 4 --keys 2 --format table",
            "loadgen split-keys 4 --records 1e3",
            "loadgen compare a.json b.json --tolerance 2.5",
        ] {
            Cli::parse_from(line.split_whitespace());
        }
    }

    #[test]
    fn impossible_settings_are_refused() {
        let drive = |extra: &str| {
            let line = format!("loadgen run {extra}");
            let cli = Cli::try_parse_from(line.split_whitespace());
            let Command::Run(args) = cli.map_err(|bad| bad.to_string())?.command else {
                panic!("not run");
            };
            args.drive(false).and_then(|_| args.plan(false)).map(|_| ())
        };
        assert!(drive("").is_ok());
        for extra in [
            "--connections 0",
            "--depth 1025",
            "--threads 0",
            "--batch 0",
            "--batch 4097",
            "--batch 2 --etcd --workload c",
            "--duration 0",
            "--warmup=-1",
            "--duration 5d",
            "--duration 1e9h",
            "--rate 0",
            "--rate nan",
            "--rate 5x",
            "--records 0",
            "--records 1.5",
            "--records k",
            "--operations 0",
            "--key-size 4 --records 100000",
            "--value-size 2000000",
        ] {
            assert!(drive(extra).is_err(), "{extra}");
        }
    }
}
