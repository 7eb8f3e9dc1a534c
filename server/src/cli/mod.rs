//! The command line's clients of a running node: `rangedb get|put|delete|cas|incr|scan|write`, `rangedb
//! status`, `rangedb top`, `rangedb history`, `rangedb balance`, `rangedb node`, `rangedb range`, `rangedb
//! config`, `rangedb reload`. `rangedb version` asks no node. `rangedb demo` starts nodes as processes of
//! their own.
//!
//! A thin layer over the client library, in the binary alone. Of the server it uses only how batches, keys
//! and values look in JSON. One thread, one tokio runtime.
//!
//! Exit codes: 0 done, 1 not found or condition failed, 2 usage, 3 refused (not applied), 4 fate
//! unknown, 5 unreachable, 6 applied, but the result could not be printed; 141 if the reader of standard
//! output went away, as after SIGPIPE. Of `rangedb status`: 0 whole, 1 degraded, 3 a range is unavailable.
//! Results go to standard output, errors to standard error.

mod args;
mod balance;
mod cluster;
mod commands;
mod condition_args;
mod config_and_reload;
mod connection_args;
mod demo;
mod history;
mod input;
mod leave;
mod output;
mod range_args;
mod request;
mod scrape;
mod split;
mod status;
mod top;
mod version;

#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind, Write as _};
use std::process::ExitCode;
use std::time::Duration;

pub use args::CliCommand;
use connection_args::ConnectionArgs;
pub use connection_args::{Format, GlobalArgs};
pub use demo::DemoArgs;
use rangedb_client::{Client, ClientOptions, ErrorCode, Fate};
use rangedb_server::logging;
pub use version::VersionArgs;

/// The result of a command; the number is the process's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The command was carried out.
    Done = 0,
    /// There is no such key, or the condition did not hold.
    NotFound = 1,
    /// The command line is not valid, or a file or standard stream failed.
    Usage = 2,
    /// The node refused the command; nothing was written.
    Refused = 3,
    /// The write may have been applied.
    FateUnknown = 4,
    /// No node answered.
    Unreachable = 5,
    /// The write was applied, but its result could not be printed.
    AppliedUnprinted = 6,
    /// Nobody reads standard output any more. The shell's code for a process that SIGPIPE ended.
    PipeClosed = 141,
}

impl Exit {
    /// The cluster serves all ranges, but something in it is not well.
    const DEGRADED: Exit = Exit::NotFound;
    /// The cluster does not serve all ranges.
    const UNAVAILABLE: Exit = Exit::Refused;
    /// A node of the demo ended before the cluster was whole, or all have ended.
    const NODE_ENDED: Exit = Exit::NotFound;
}

/// The reason why a command failed.
#[derive(Debug)]
struct CliError {
    exit: Exit,
    message: String,
}

impl CliError {
    fn usage(message: impl Into<String>) -> CliError {
        CliError {
            exit: Exit::Usage,
            message: message.into(),
        }
    }

    /// Standard output failed after an order had taken effect.
    fn unprinted(self) -> CliError {
        CliError {
            exit: Exit::AppliedUnprinted,
            message: format!(
                "the change was applied, but its result cannot be printed: {}",
                self.message
            ),
        }
    }
}

impl From<rangedb_client::Error> for CliError {
    fn from(error: rangedb_client::Error) -> CliError {
        let message = match error.code {
            // A range without a majority refuses reads, too, and those apply nothing.
            ErrorCode::NoQuorum if error.fate == Fate::NotApplied => format!(
                "{} ({}); `rangedb status` names the nodes that are missing",
                error.message,
                error.code.name()
            ),
            _ => error.to_string(),
        };
        let exit = match (error.fate, error.code) {
            (Fate::NotApplied, ErrorCode::Unreachable) => Exit::Unreachable,
            (Fate::NotApplied, _) => Exit::Refused,
            (Fate::Applied | Fate::Unknown, _) => Exit::FateUnknown,
        };
        CliError { exit, message }
    }
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> CliError {
        // Only standard input, files of values, and standard output cause such errors here.
        let exit = match error.kind() {
            ErrorKind::BrokenPipe => Exit::PipeClosed,
            _ => Exit::Usage,
        };
        CliError {
            exit,
            message: error.to_string(),
        }
    }
}

/// Runs one command and prints its result.
pub fn run(command: CliCommand) -> ExitCode {
    conclude(execute(command))
}

/// Prints which release and build this is.
pub fn print_version(args: &VersionArgs) -> ExitCode {
    conclude(version::print(args, &mut io::stdout()))
}

/// Runs a cluster of a few nodes on this machine until a signal ends it.
pub fn run_demo(args: &DemoArgs) -> ExitCode {
    conclude(demo::run(args, &mut io::stdout()))
}

/// The exit code after standard output refused a result that nothing was written for.
pub fn cannot_print(error: io::Error) -> ExitCode {
    conclude(Err(error.into()))
}

fn conclude(result: Result<Exit, CliError>) -> ExitCode {
    let exit = match result {
        Ok(exit) => exit,
        Err(error) => {
            // A reader that has seen enough needs no message.
            if error.exit != Exit::PipeClosed {
                logging::last_words(&error.message);
            }
            error.exit
        }
    };
    ExitCode::from(exit as u8)
}

/// Connects to one of these nodes.
async fn connect(addresses: &[String], connection: &ConnectionArgs) -> Result<Client, CliError> {
    // A person hears at once that no node runs.
    let options = ClientOptions::new(addresses)
        .timeout(connection.timeout)
        .connect_timeout(Duration::ZERO)
        .cluster(connection.cluster)
        .tls(connection.tls.options().map_err(CliError::usage)?);
    Client::connect(options).await.map_err(|error| CliError {
        exit: match error.code {
            ErrorCode::Invalid => Exit::Usage,
            _ => Exit::Unreachable,
        },
        message: error.to_string(),
    })
}

fn execute(command: CliCommand) -> Result<Exit, CliError> {
    // The arguments are checked before anything is sent.
    let request = request::prepare(&command)?;
    let connection = command.connection();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let exit = runtime.block_on(async {
        let client = connect(&connection.addresses, connection).await?;
        let mut out = io::stdout().lock();
        let exit = commands::perform(&client, request, connection, &mut out).await?;
        out.flush()?;
        Ok(exit)
    });
    // Otherwise a name that is still being looked up would delay the end of the process.
    runtime.shutdown_background();
    exit
}
