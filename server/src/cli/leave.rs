//! `rangedb node drain|undrain|decommission|remove`: orders by which a node leaves the cluster, and
//! the progress of those that take a while. A line of progress is JSON in every format: scripts
//! read it, and people can.

use std::io::Write;
use std::time::Duration;

use rangedb_client::Client;
use rangedb_client::admin::{Admin, Leaving, Membership};
use rangedb_protocol::admin::Done;
use rangedb_server::admin::json::of_state;
use tokio::time::{Instant, sleep, timeout_at};

use super::connection_args::Format;
use super::output::Printer;
use super::request::Leave;
use super::{Exit, Trouble};

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
) -> Result<Exit, Trouble> {
    let admin = client.admin();
    let until = Instant::now() + timeout;
    let (node, goal) = match leave {
        Leave::Drain { node, wait } => {
            admin.drain_node(node).await?;
            (node, wait.then_some(Goal::DRAINED))
        }
        Leave::Decommission { node, wait } => {
            admin.decommission_node(node).await?;
            (node, wait.then_some(Goal::DECOMMISSIONED))
        }
        Leave::Undrain { node } => {
            admin.undrain_node(node).await?;
            (node, None)
        }
        Leave::Remove { node } => {
            admin.remove_node(node).await?;
            (node, None)
        }
        Leave::DryRun { node } => {
            let leaving = admin.decommission_dry_run(node).await?;
            printer.print(out, of_state(&leaving)?, foreseen(&leaving).trim_end())?;
            return Ok(match leaving.blocked.is_empty() {
                true => Exit::Done,
                false => Exit::Refused,
            });
        }
    };
    match goal {
        None => printer.print(out, of_state(Done { done: true })?, "done"),
        Some(goal) => {
            goal.wait(&admin, node, until, out).await?;
            if printer.format == Format::Table {
                writeln!(out, "node {node} is {}", goal.name)?;
            }
            Ok(Exit::Done)
        }
    }
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

    /// Prints a line each second until the node has left.
    async fn wait(
        &self,
        admin: &Admin,
        node: u64,
        until: Instant,
        out: &mut impl Write,
    ) -> Result<(), Trouble> {
        let mut next_line = Instant::now();
        loop {
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
                return Err(Trouble { exit, message });
            }
            if leaving.done || Instant::now() >= next_line {
                writeln!(out, "{}", of_state(&leaving)?)?;
                next_line = Instant::now() + LINE_INTERVAL;
            }
            if leaving.done {
                return Ok(());
            }
            if Instant::now() + POLL_INTERVAL > until {
                return Err(self.unknown(node, "it takes longer than --timeout"));
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    fn unknown(&self, node: u64, why: &str) -> Trouble {
        let Goal { name, command, .. } = self;
        Trouble {
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
}
