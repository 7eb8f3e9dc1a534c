//! `rangedb status` and `rangedb range ls`.

use std::io::Write;

use rangedb_client::Client;
use serde_json::json;

use super::commands::Printer;
use super::{Exit, Trouble};

/// Prints the state of the node.
pub(super) async fn status(
    client: &Client,
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, Trouble> {
    let status = client.status().await?;
    let words = format!("{status:?}");
    printer.print(out, json!(words), &words)
}

/// Lists the ranges.
pub(super) async fn ranges(
    client: &Client,
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, Trouble> {
    let ranges = client.ranges().await?;
    let words = format!("{ranges:?}");
    printer.print(out, json!(words), &words)
}
