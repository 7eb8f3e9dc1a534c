//! Flags that every client command has: which nodes are asked, for how long, and how results look.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use rangedb_client::ClusterId;
use rangedb_client::flags::TlsArgs;

/// The format of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Lines for people.
    Table,
    /// One JSON object on one line.
    Json,
}

/// Flags that every command has.
#[derive(Clone, Debug, Args)]
pub struct ConnectionArgs {
    /// Addresses of nodes; they are tried one after the other.
    #[arg(
        long = "addr",
        env = "RANGEDB_ADDR",
        default_value = "127.0.0.1:7400",
        value_name = "HOST:PORT[,HOST:PORT...]",
        value_delimiter = ',',
        value_parser = parse_address
    )]
    pub addresses: Vec<String>,
    /// The id of the cluster that the nodes must belong to; nodes of other clusters are not used.
    /// By default the cluster of the first node that answers.
    #[arg(long, env = "RANGEDB_CLUSTER", value_name = "ID")]
    pub cluster: Option<ClusterId>,
    /// The longest time for the command, such as 500ms, 1.5s or 1m; a number without a unit counts
    /// seconds.
    #[arg(
        long,
        env = "RANGEDB_TIMEOUT",
        default_value = "5s",
        allow_hyphen_values = true,
        value_parser = parse_timeout,
        value_name = "TIME"
    )]
    pub timeout: Duration,
    /// The format of results.
    #[arg(long, env = "RANGEDB_FORMAT", default_value = "table", value_enum)]
    pub format: Format,
    /// Arguments and results have keys and values as hexadecimal digits.
    #[arg(long)]
    pub hex: bool,
    /// How connections are encrypted.
    #[command(flatten)]
    pub tls: TlsArgs,
}

/// [`ConnectionArgs`] in front of the command. The names are the same, so clap hands the values on to
/// the command.
#[derive(Clone, Debug, Args)]
pub struct GlobalArgs {
    #[arg(
        long = "addr",
        global = true,
        hide = true,
        value_delimiter = ',',
        value_parser = parse_address
    )]
    addresses: Option<Vec<String>>,
    #[arg(long, global = true, hide = true)]
    cluster: Option<ClusterId>,
    #[arg(long, global = true, hide = true, value_parser = parse_timeout)]
    timeout: Option<Duration>,
    #[arg(long, global = true, hide = true, value_enum)]
    format: Option<Format>,
    #[arg(long, global = true, hide = true)]
    hex: bool,
    #[arg(long, global = true, hide = true)]
    tls_ca: Option<PathBuf>,
    #[arg(long, global = true, hide = true)]
    tls_cert: Option<PathBuf>,
    #[arg(long, global = true, hide = true)]
    tls_key: Option<PathBuf>,
    #[arg(long, global = true, hide = true)]
    tls_name: Option<String>,
}

impl GlobalArgs {
    /// A flag that was given and means nothing to a command that asks no node. Such a command may
    /// have a format, and files of TLS that are settings of the node.
    pub fn meaningless(&self, has_format: bool, has_tls: bool) -> Option<&'static str> {
        let flags = [
            ("--tls-ca", self.tls_ca.is_some() && !has_tls),
            ("--tls-cert", self.tls_cert.is_some() && !has_tls),
            ("--tls-key", self.tls_key.is_some() && !has_tls),
            ("--tls-name", self.tls_name.is_some()),
            ("--addr", self.addresses.is_some()),
            ("--cluster", self.cluster.is_some()),
            ("--timeout", self.timeout.is_some()),
            ("--format", self.format.is_some() && !has_format),
            ("--hex", self.hex),
        ];
        let given = flags.into_iter().find(|(_, is_given)| *is_given);
        given.map(|(flag, _)| flag)
    }
}

/// An address with a port, without the blanks around it, such as stand in a list after its commas.
fn parse_address(text: &str) -> Result<String, String> {
    let address = text.trim();
    let rule = |typed: String| format!("an address is HOST:PORT, such as {typed}");
    if address.contains("://") || address.contains('/') {
        return Err(rule(
            "127.0.0.1:7400, without a scheme or a path".to_owned(),
        ));
    }
    let port = address
        .rsplit_once(':')
        .filter(|(host, _)| !host.is_empty());
    match port.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(_)) => Ok(address.to_owned()),
        _ if address.is_empty() => Err(rule("127.0.0.1:7400".to_owned())),
        _ => Err(rule(format!("{}:7400", address.trim_end_matches(':')))),
    }
}

/// A duration above zero.
pub(super) fn parse_timeout(text: &str) -> Result<Duration, String> {
    let timeout = rangedb_duration::parse(text).map_err(|bad| bad.to_string())?;
    if timeout.is_zero() {
        return Err("the time must not be 0".to_owned());
    }
    Ok(timeout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_port() {
        for good in ["localhost:7400", " 10.0.0.1:1 ", "[::1]:7400"] {
            assert_eq!(parse_address(good).as_deref(), Ok(good.trim()));
        }
        for bad in [
            "",
            " ",
            "localhost",
            "localhost:",
            "127.0.0.1",
            ":7400",
            "http://x:1",
            "x:1/",
            "x:99999",
        ] {
            assert!(parse_address(bad).is_err(), "{bad}");
        }
        let message = parse_address("localhost").expect_err("no port");
        assert!(message.contains("localhost:7400"), "{message}");
    }

    #[test]
    fn timeouts_have_units_or_count_seconds() {
        for (text, duration) in [
            ("5s", Duration::from_secs(5)),
            ("2", Duration::from_secs(2)),
            ("0.5", Duration::from_millis(500)),
            ("250ms", Duration::from_millis(250)),
            ("1.5m", Duration::from_secs(90)),
            ("2h", Duration::from_hours(2)),
        ] {
            assert_eq!(parse_timeout(text), Ok(duration), "{text}");
        }
        for bad in [
            "",
            "s",
            "5d",
            "-1s",
            "0s",
            "0",
            "1e400s",
            "5 s",
            "99999999999h",
        ] {
            assert!(parse_timeout(bad).is_err(), "{bad}");
        }
        let message = parse_timeout("5d").expect_err("no unit");
        assert!(
            message.contains("5d") && message.contains("1.5s"),
            "{message}"
        );
    }
}
