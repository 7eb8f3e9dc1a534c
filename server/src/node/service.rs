//! Reports the node's state to the service manager (systemd), and keeps its watchdog satisfied.
//!
//! At each interval a task asks every shard for a beat, which a shard gives when its thread takes up the
//! next task. When all have answered, the manager gets `WATCHDOG=1`, and, while the node starts or stops,
//! `EXTEND_TIMEOUT_USEC`. So if a thread hangs, the manager's watchdog or its time limit of the start or
//! the stop ends the process. A long recovery, a wait for a place in a cluster, or a long `--drain-wait`
//! does not end it. Lives on the control thread; without a manager it does nothing.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::admin::{Node, Phase};
use crate::env::notify::{ServiceManager, State};
use crate::node_settings::Settings;
use crate::probe::BeatRequest;

/// The longest time from one message to the next.
const INTERVAL: Duration = Duration::from_secs(2);
/// Messages in the time of the watchdog, if that is short.
const BEATS_OF_WATCHDOG: u32 = 3;
/// How much longer a start or a stop may take from each message on.
const EXTENSION: Duration = Duration::from_secs(60);

/// The service manager, and what it is told about.
pub(super) struct Service {
    manager: Option<ServiceManager>,
    node: Arc<Node>,
    /// A channel to each shard, once there are shards.
    shards: OnceLock<Vec<mpsc::Sender<BeatRequest>>>,
}

impl Service {
    /// The manager that has started this process, if there is one, and the node that it hears of.
    pub(super) fn new(node: Arc<Node>) -> Service {
        let manager = ServiceManager::from_environment().unwrap_or_else(|error| {
            tracing::warn!(%error, "the service manager hears nothing of this node");
            None
        });
        Service {
            manager,
            node,
            shards: OnceLock::new(),
        }
    }

    /// From now on these shards must beat.
    pub(super) fn watch(&self, shards: Vec<mpsc::Sender<BeatRequest>>) {
        // A second call would change nothing; the start of the node calls it once.
        let _ = self.shards.set(shards);
    }

    /// Tells the manager at each interval how the node is; never returns if there is a manager.
    pub(super) async fn inform(self: Arc<Service>) {
        let Some(manager) = &self.manager else { return };
        let of_watchdog = manager.watchdog().map(|time| time / BEATS_OF_WATCHDOG);
        let interval = of_watchdog.map_or(INTERVAL, |interval| interval.min(INTERVAL));
        loop {
            if let Some(shards) = self.shards.get() {
                all_beat(shards).await;
            }
            let (_, status) = self.node.readiness().await;
            let mut states = vec![State::Status(status), State::Watchdog];
            if self.node.phase() != Phase::Ready {
                states.push(State::ExtendTimeout(EXTENSION));
            }
            manager.tell(&states);
            tokio::time::sleep(interval).await;
        }
    }

    /// Changes the state of the node's life, and tells the manager.
    pub(super) fn enter(&self, phase: Phase) {
        self.node.enter(phase);
        let status = |text: &str| State::Status(text.to_owned());
        match phase {
            Phase::Starting => {}
            Phase::Ready => self.tell(&[State::Ready, status("ready")]),
            Phase::Leaving | Phase::ShuttingDown => {
                self.tell(&[
                    State::Stopping,
                    status("stopping: the node was told to stop"),
                    State::ExtendTimeout(EXTENSION),
                ]);
            }
        }
    }

    /// Tells the manager that a reload begins, waits for its end, and tells that.
    pub(super) async fn reload(self: Arc<Service>, settings: Arc<Settings>) {
        self.tell(&[State::Reloading]);
        // An error: there was no thread for it, which is logged.
        let _ = settings.reload_apart().await;
        self.tell(&[State::Ready]);
    }

    fn tell(&self, states: &[State]) {
        if let Some(manager) = &self.manager {
            manager.tell(states);
        }
    }
}

/// Returns when each shard has beaten or has ended.
async fn all_beat(shards: &[mpsc::Sender<BeatRequest>]) {
    let mut asked = Vec::new();
    for shard in shards {
        let (ask, beat) = oneshot::channel();
        if shard.send(ask).await.is_ok() {
            asked.push(beat);
        }
    }
    for beat in asked {
        // An error: the shard has ended meanwhile.
        let _ = beat.await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn one_silent_shard_is_enough() {
        let (first, mut of_first) = mpsc::channel::<BeatRequest>(1);
        let (second, mut of_second) = mpsc::channel::<BeatRequest>(1);
        let shards = [first, second];
        let mut beats = Box::pin(all_beat(&shards));
        assert!(beats.as_mut().now_or_never().is_none());
        let asked = of_first.try_recv().expect("it is asked");
        asked.send(()).expect("it waits");
        assert!(beats.as_mut().now_or_never().is_none());
        let asked = of_second.try_recv().expect("it is asked");
        asked.send(()).expect("it waits");
        assert!(beats.now_or_never().is_some());
        // A shard that has ended is not waited for.
        drop((of_first, of_second));
        assert!(all_beat(&shards).now_or_never().is_some());
    }
}
