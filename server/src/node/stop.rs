//! How a node stops: it goes on serving for `--drain-wait`, then others lead its ranges, and what is in
//! flight ends. On the control thread.

use std::time::{Duration, Instant as StdInstant};

use super::service::Service;
use super::{NodeError, Shards, Signals, died};
use crate::admin::Phase;
use crate::env;
use crate::logging;
use crate::shard::Order;

/// Signals that follow the first one within this time count as the same one: `timeout` and some
/// supervisors signal both the process and its group.
const REPEATED_SIGNAL_INTERVAL: Duration = Duration::from_millis(500);
/// The exit code after a second signal; shells report the same for a process that SIGINT ended.
const EXIT_AT_ONCE: i32 = 130;
/// The time that requests in flight get to finish after the first signal.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// Goes on serving for a while after the signal to stop, so that load balancers notice it.
pub(super) async fn linger(
    wait: Duration,
    service: &Service,
    shards: &mut Shards,
    signals: &mut Signals,
) {
    if wait.is_zero() {
        return;
    }
    service.enter(Phase::Leaving);
    tracing::info!(
        "the node was told to stop and serves for {wait:?} more, while /readyz says that it stops"
    );
    let told = StdInstant::now();
    let over = tokio::time::Instant::now() + wait;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(over) => return,
            () = signals.stop() => end_at_once(told),
            ended = shards.ended.recv() => died(ended),
        }
    }
}

/// Ends the process at a second signal to stop; `told` is when the first one came.
fn end_at_once(told: StdInstant) {
    if told.elapsed() >= REPEATED_SIGNAL_INTERVAL {
        tracing::warn!("told to stop a second time: ending at once");
        logging::flush();
        std::process::exit(EXIT_AT_ONCE);
    }
}

/// Stops all shards and waits until they have ended.
pub(super) async fn shut_down(shards: &mut Shards, signals: &mut Signals) -> Result<(), NodeError> {
    tracing::info!(
        event = "drain_started",
        "the node was told to stop: what is in flight gets 10 s; a second signal ends it at once"
    );
    let told = StdInstant::now();
    // A shard that has ended already receives no order.
    let _ = shards.orders.send(Order::Stop {
        until: env::now() + SHUTDOWN_TIMEOUT,
    });
    while shards.running > 0 {
        tokio::select! {
            ended = shards.ended.recv() => match ended {
                Some((_, Ok(()))) => shards.running -= 1,
                Some((shard, Err(error))) => return Err(NodeError::Shard(shard, error)),
                None => break,
            },
            () = signals.stop() => end_at_once(told),
        }
    }
    tracing::info!(
        event = "drain_ended",
        "what was in flight has ended, after {} ms",
        told.elapsed().as_millis()
    );
    tracing::info!(event = "node_stopped", "the node has stopped");
    Ok(())
}
