//! Flags and parsing for the command lines of programs that connect to RangeDB, made with clap. Only with the feature
//! `clap`. [`crate::TlsOptions`] says what the files of the flags are for.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::{Command, Parser};

use crate::tls::TlsOptions;

/// Parses the command line of this process; ends the process if it asks for help or is not valid.
///
/// clap takes what a variable of the environment sets for typed, so that the usage in its errors would
/// demand `--addr` while `RANGEDB_ADDR` is set. So a command line that is refused is parsed once more without
/// variables, and the error of that is shown if there is one.
pub fn parse<P: Parser>() -> P {
    let line: Vec<OsString> = std::env::args_os().collect();
    P::try_parse_from(&line).unwrap_or_else(|error| as_typed(P::command(), &line, error).exit())
}

/// The error of a command line without the environment; the one given if there is none, or if help was
/// asked for.
fn as_typed(command: Command, line: &[OsString], error: clap::Error) -> clap::Error {
    let is_help = [
        ErrorKind::DisplayHelp,
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
        ErrorKind::DisplayVersion,
    ];
    if is_help.contains(&error.kind()) {
        return error;
    }
    match without_variables(command).try_get_matches_from(line) {
        Ok(_) => error,
        Err(typed) => typed,
    }
}

/// The command and all below it, without their variables.
fn without_variables(command: Command) -> Command {
    command
        .mut_args(|arg| arg.env(Resettable::Reset))
        .mut_subcommands(without_variables)
}

/// The flags of encrypted connections, to be flattened into a command's arguments.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct TlsArgs {
    /// PEM file with the certificates that sign those of nodes; it makes the connections encrypted.
    #[arg(long, env = "RANGEDB_CLIENT_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// PEM file with the certificate that nodes want to see.
    #[arg(long, env = "RANGEDB_CLIENT_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the key of that certificate.
    #[arg(long, env = "RANGEDB_CLIENT_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// The host that the certificates of nodes name, instead of those in their addresses.
    #[arg(long, env = "RANGEDB_CLIENT_TLS_NAME", value_name = "NAME")]
    pub tls_name: Option<String>,
}

impl TlsArgs {
    /// The options that the flags stand for; `None` if none is given.
    ///
    /// # Errors
    /// One of the flags lacks another.
    pub fn options(&self) -> Result<Option<TlsOptions>, String> {
        let Some(ca) = &self.tls_ca else {
            let is_given =
                self.tls_cert.is_some() || self.tls_key.is_some() || self.tls_name.is_some();
            return match is_given {
                true => {
                    Err("TLS needs --tls-ca FILE, the certificate that signs those of nodes".into())
                }
                false => Ok(None),
            };
        };
        let options = TlsOptions::ca_file(ca);
        let options = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => options.certificate_files(certificate, key),
            (None, None) => options,
            (Some(_), None) => return Err("--tls-cert needs its key, --tls-key FILE".into()),
            (None, Some(_)) => {
                return Err("--tls-key needs its certificate, --tls-cert FILE".into());
            }
        };
        Ok(Some(match &self.tls_name {
            Some(name) => options.server_name(name.as_str()),
            None => options,
        }))
    }
}
