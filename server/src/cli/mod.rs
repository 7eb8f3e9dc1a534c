//! The command line's clients of a running node: `rangedb get|put|delete|cas|incr|scan|write`,
//! `rangedb status`, `rangedb history`, `rangedb node`, `rangedb range`, `rangedb config`. `rangedb
//! version` asks no node.
//!
//! A thin layer over the client library; only the binary contains it, and of the server it uses
//! only the forms of batches, keys and values in JSON. One thread, one tokio runtime.
//!
//! Exit codes: 0 done, 1 not found or condition failed, 2 usage, 3 refused (not applied), 4 fate
//! unknown, 5 unreachable. Of `rangedb status`: 0 whole, 1 degraded, 3 a range is unavailable. Results go to standard output, errors to standard error.

mod args;
mod cluster;
mod commands;
mod history;
mod input;
mod output;
mod request;
mod status;
mod version;

#[cfg(test)]
mod tests;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use args::ConnectionArgs;
pub use args::{CliCommand, Format};
use rangedb_client::{Client, ClientOptions, ErrorCode, Fate};
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
}

impl Exit {
    /// The cluster serves all ranges, but something in it is not well.
    const DEGRADED: Exit = Exit::NotFound;
    /// The cluster does not serve all ranges.
    const UNAVAILABLE: Exit = Exit::Refused;
}

/// The reason why a command failed.
#[derive(Debug)]
struct Trouble {
    exit: Exit,
    message: String,
}

impl Trouble {
    fn usage(message: impl Into<String>) -> Trouble {
        Trouble {
            exit: Exit::Usage,
            message: message.into(),
        }
    }
}

impl From<rangedb_client::Error> for Trouble {
    fn from(error: rangedb_client::Error) -> Trouble {
        let exit = match (error.fate, error.code) {
            (Fate::NotApplied, ErrorCode::Unreachable) => Exit::Unreachable,
            (Fate::NotApplied, _) => Exit::Refused,
            (Fate::Applied | Fate::Unknown, _) => Exit::FateUnknown,
        };
        Trouble {
            exit,
            message: error.to_string(),
        }
    }
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Trouble {
        // Only standard input, files of values, and standard output cause such errors here.
        Trouble {
            exit: Exit::Usage,
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
    conclude(version::print(args, &mut std::io::stdout()))
}

fn conclude(result: Result<Exit, Trouble>) -> ExitCode {
    let exit = match result {
        Ok(exit) => exit,
        Err(trouble) => {
            eprintln!("rangedb: {}", trouble.message);
            trouble.exit
        }
    };
    ExitCode::from(exit as u8)
}

/// Connects to one of these nodes.
async fn connect(addresses: &[String], connection: &ConnectionArgs) -> Result<Client, Trouble> {
    // A person hears at once that no node runs.
    let options = ClientOptions::new(addresses)
        .timeout(connection.timeout)
        .connect_timeout(Duration::ZERO)
        .cluster(connection.cluster);
    Client::connect(options).await.map_err(|error| Trouble {
        exit: Exit::Unreachable,
        message: error.to_string(),
    })
}

fn execute(command: CliCommand) -> Result<Exit, Trouble> {
    // The arguments are checked before anything is sent.
    let request = request::prepare(&command)?;
    let connection = command.connection();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let exit = runtime.block_on(async {
        let client = connect(&connection.addresses, connection).await?;
        let mut out = std::io::stdout().lock();
        let exit = commands::perform(&client, request, connection, &mut out).await;
        out.flush()?;
        exit
    });
    // Otherwise a name that is still being looked up would delay the end of the process.
    runtime.shutdown_background();
    exit
}
