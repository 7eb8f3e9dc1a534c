//! `rangedb node drain|undrain|decommission|remove`: orders by which a node leaves the cluster, and the
//! progress of those that take a while. A line of progress is JSON in every format, so that scripts can
//! read it.

use std::fmt::Display;
use std::io::{self, Write};
use std::time::Duration;

use rangedb_client::Client;
use rangedb_client::admin::{Admin, Leaving, Membership};
use rangedb_engine::words::listed;
use rangedb_protocol::admin::{Done, Started};
use rangedb_server::admin::json::of_state;
use tokio::time::{Instant, sleep, timeout_at};

use super::connection_args::Format;
use super::output::Printer;
use super::request::Leave;
use super::{CliError, Exit};

/// How often the cluster is asked how far a node is.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How often that is printed.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

/// Gives the order. If the command is to wait, it does so until `timeout` has passed.
pub(super) async fn perform(
    client: &Client,
    leave: Leave,
    timeout: Duration,
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let admin = client.admin();
    let until = Instant::now() + timeout;
    let (nodes, goal, waits) = match leave {
        Leave::Drain { node, wait } => {
            admin.drain_node(node).await?;
            (vec![node], Goal::DRAINED, wait)
        }
        Leave::Decommission { nodes, wait } => {
            decommission(&admin, &nodes, until).await?;
            (nodes, Goal::DECOMMISSIONED, wait)
        }
        Leave::Undrain { node } => {
            admin.undrain_node(node).await?;
            return printer.applied(out, of_state(Done { done: true })?, "done");
        }
        Leave::Remove { node } => {
            admin.remove_node(node).await?;
            return printer.applied(out, of_state(Done { done: true })?, "done");
        }
        Leave::DryRun { nodes } => return dry_run(&admin, &nodes, printer, out).await,
    };
    if !waits {
        let (started, done) = (true, false);
        let words = goal.started(&nodes);
        return printer.applied(out, of_state(Started { started, done })?, &words);
    }
    goal.wait(&admin, &nodes, until, out).await?;
    if printer.format == Format::Table {
        for node in nodes {
            let line = format!("node {node} is {}", goal.name);
            print_line(out, line)?;
        }
    }
    Ok(Exit::Done)
}

/// Prints a line about an order that was taken.
fn print_line(out: &mut impl Write, line: impl Display) -> Result<(), CliError> {
    let printed = writeln!(out, "{line}").and_then(|()| out.flush());
    printed.map_err(|error: io::Error| CliError::from(error).unprinted())
}

/// Orders the nodes to be decommissioned, one after the other. While the order of another is being written
/// down, the manager refuses the next: it is given again.
async fn decommission(admin: &Admin, nodes: &[u64], until: Instant) -> Result<(), CliError> {
    for (ordered, node) in nodes.iter().enumerate() {
        let mut result = admin.decommission_node(*node).await;
        while let Err(error) = &result
            && error.is_retryable()
            && Instant::now() + POLL_INTERVAL < until
        {
            sleep(POLL_INTERVAL).await;
            result = admin.decommission_node(*node).await;
        }
        if let Err(error) = result {
            let mut error = CliError::from(error);
            if let Some(before) = nodes.get(..ordered).filter(|before| !before.is_empty()) {
                error.message = format!(
                    "{}; the order about node {} was taken, and `rangedb node undrain` takes it back",
                    error.message,
                    listed(before)
                );
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Prints what the decommissioning of a node would do.
async fn dry_run(
    admin: &Admin,
    nodes: &[u64],
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let [node] = nodes else {
        return Err(CliError {
            exit: Exit::Usage,
            message: "--dry-run takes one node: where the replicas of another go depends on it"
                .to_owned(),
        });
    };
    let leaving = admin.decommission_dry_run(*node).await?;
    printer.print(out, of_state(&leaving)?, foreseen(&leaving).trim_end())?;
    Ok(match leaving.blocked.is_empty() {
        true => Exit::Done,
        false => Exit::Refused,
    })
}

/// What a decommissioning would do, in lines.
fn foreseen(leaving: &Leaving) -> String {
    let moves = leaving.moves.iter();
    let moves = moves.map(|to| {
        let (range, node, shard) = (to.range, to.node, to.shard);
        format!("range {range} would move to {node}/{shard}\n")
    });
    let blocked = leaving.blocked.iter();
    let blocked = blocked.map(|blocked| {
        let (range, reason) = (blocked.range, &blocked.reason);
        format!("range {range} could not leave: {reason}\n")
    });
    let lines: String = moves.chain(blocked).collect();
    match lines.is_empty() {
        true => "nothing would move".to_owned(),
        false => lines,
    }
}

/// What a command waits for.
struct Goal {
    /// The node must have one of these memberships meanwhile.
    on_the_way: &'static [Membership],
    name: &'static str,
    command: &'static str,
}

impl Goal {
    const DRAINED: Goal = Goal {
        on_the_way: &[Membership::Draining],
        name: "drained",
        command: "drain",
    };
    const DECOMMISSIONED: Goal = Goal {
        on_the_way: &[Membership::Decommissioning, Membership::Decommissioned],
        name: "decommissioned",
        command: "decommission",
    };

    /// What is said when the order was taken and its end is not waited for.
    fn started(&self, nodes: &[u64]) -> String {
        let nodes: Vec<String> = nodes.iter().map(u64::to_string).collect();
        let (command, nodes) = (self.command, nodes.join(" "));
        format!(
            "started; `rangedb node {command} {nodes} --wait` shows its progress and waits for its end"
        )
    }

    /// Prints a line for each node each second until all have left.
    async fn wait(
        &self,
        admin: &Admin,
        nodes: &[u64],
        until: Instant,
        out: &mut impl Write,
    ) -> Result<(), CliError> {
        let mut left = nodes.to_vec();
        let mut next_line = Instant::now();
        while !left.is_empty() {
            let prints = Instant::now() >= next_line;
            if prints {
                next_line = Instant::now() + LINE_INTERVAL;
            }
            let mut stay = Vec::new();
            for node in left {
                if !self.look(admin, node, (until, prints), out).await? {
                    stay.push(node);
                }
            }
            left = stay;
            if let Some(node) = left.first() {
                if Instant::now() + POLL_INTERVAL > until {
                    return Err(self.unknown(*node, "it takes longer than --timeout"));
                }
                sleep(POLL_INTERVAL).await;
            }
        }
        Ok(())
    }

    /// Looks whether a node has left; prints a line if it has, or if one is due.
    async fn look(
        &self,
        admin: &Admin,
        node: u64,
        (until, prints): (Instant, bool),
        out: &mut impl Write,
    ) -> Result<bool, CliError> {
        let asked = timeout_at(until, admin.leaving(node)).await;
        let leaving = match asked {
            Ok(Ok(leaving)) => leaving,
            Ok(Err(error)) => return Err(self.unknown(node, &error.to_string())),
            Err(_) => return Err(self.unknown(node, "it takes longer than --timeout")),
        };
        if !self.on_the_way.contains(&leaving.membership) {
            let message = format!(
                "the order was taken back meanwhile: node {node} is {}",
                leaving.membership
            );
            let exit = Exit::Refused;
            return Err(CliError { exit, message });
        }
        if leaving.done || prints {
            print_line(out, of_state(&leaving)?)?;
        }
        Ok(leaving.done)
    }

    fn unknown(&self, node: u64, why: &str) -> CliError {
        let Goal { name, command, .. } = self;
        CliError {
            exit: Exit::FateUnknown,
            message: format!(
                "the order was taken, but whether node {node} is {name} is not known: {why}; \
                 `rangedb node {command} {node} --wait` waits on"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_dry_run_says_what_would_move_and_what_could_not() {
        let leaving = json!({
            "decommissioning": 3, "membership": "active", "leaders_left": 1, "replicas_left": 2,
            "requests_left": 0, "blocked": [{ "range": 9, "reason": "no voter has matched" }],
            "moves": [{ "range": 7, "node": 4, "shard": 1 }], "done": false,
        });
        let leaving: Leaving = serde_json::from_value(leaving).unwrap();
        assert_eq!(
            foreseen(&leaving),
            "range 7 would move to 4/1\nrange 9 could not leave: no voter has matched\n"
        );
        assert_eq!(foreseen(&Leaving::default()), "nothing would move");
    }

    #[test]
    fn an_order_that_is_not_waited_for_has_started() {
        let words = Goal::DECOMMISSIONED.started(&[2, 3]);
        assert!(
            words.starts_with("started; `rangedb node decommission 2 3 --wait`"),
            "{words}"
        );
    }
}
