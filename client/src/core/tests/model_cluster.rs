//! A model cluster in virtual time: nodes in memory that stop and start, ranges that split and move,
//! requests and replies that get lost or arrive late. Clients drive the core against it. The test checks
//! that a write is applied at most once, and that the client gets its true fate.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rangedb_protocol::{ErrorReply, Route, Session as RequestId};

use super::ms;
use crate::core::{Action, Attempt, Call, ClientCore, Endpoint, Event, Kind, Lost, Random};
use crate::error::{Error, ErrorCode, Fate};

const SEEDS: u64 = 100;
const NODES: u64 = 3;
const CALLS: usize = 60;
/// Calls that run at the same time.
const AT_ONCE: usize = 4;
const TIMEOUT: Duration = Duration::from_secs(4);

/// A range and its leader.
#[derive(Clone, Debug)]
struct Range {
    id: u64,
    version: u32,
    start: Vec<u8>,
    end: Option<Vec<u8>>,
    /// `None`: the range was just split off.
    leader: Option<u64>,
}

/// A request on its way: the call that it belongs to, and what it carries.
struct Sent {
    call: usize,
    key: Vec<u8>,
    to: u64,
    attempt: Attempt,
}

struct ModelCluster {
    random: Random,
    up: [bool; NODES as usize],
    ranges: Vec<Range>,
    /// The request ids of the writes that were applied.
    applied: BTreeSet<(u128, u64)>,
    /// How often each call's write was applied.
    times: Vec<u32>,
    /// The highest lowest-unanswered sequence number of the client.
    mark: u64,
    late: Vec<Sent>,
    began: Instant,
}

/// What comes to a call next.
enum Coming {
    Event(Event),
    Answer,
}

struct RunningCall<'a> {
    index: usize,
    key: &'a [u8],
    call: Call<'a>,
    deadline: Instant,
    endpoint: Option<Endpoint>,
    /// When the present try is late, and how often it is silent until then.
    until: Instant,
    silence: Option<Duration>,
    due: Instant,
    coming: Coming,
}

impl ModelCluster {
    fn new(seed: u64) -> ModelCluster {
        ModelCluster {
            random: Random(seed.into()),
            up: [true; NODES as usize],
            ranges: vec![Range {
                id: 2,
                version: 1,
                start: Vec::new(),
                end: None,
                leader: Some(1),
            }],
            applied: BTreeSet::new(),
            times: vec![0; CALLS],
            mark: 0,
            late: Vec::new(),
            began: Instant::now(),
        }
    }

    fn once_in(&self, many: usize) -> bool {
        self.random.below(many) == 0
    }

    fn any_node(&self) -> u64 {
        1 + self.random.below(NODES as usize) as u64
    }

    fn timestamp(&self, now: Instant) -> u64 {
        (1_000 + (now - self.began).as_millis() as u64) << 16
    }

    /// Something happens to the cluster, now and then.
    fn happens(&mut self) {
        if self.once_in(20) {
            let node = self.random.below(NODES as usize);
            self.up[node] = !self.up[node] || self.once_in(3);
        }
        if self.once_in(20) {
            let (range, leader) = (self.random.below(self.ranges.len()), self.any_node());
            self.ranges[range].leader = Some(leader);
        }
        let unled = self.ranges.iter().position(|range| range.leader.is_none());
        if let Some(unled) = unled.filter(|_| self.once_in(6)) {
            self.ranges[unled].leader = Some(self.any_node());
        }
        if self.once_in(40) && self.ranges.len() < 6 {
            self.split();
        }
        if let Some(late) = self.late.pop() {
            if self.once_in(3) {
                // Nobody waits for its reply.
                let _ = self.serve(&late);
            } else {
                self.late.insert(0, late);
            }
        }
    }

    fn split(&mut self) {
        let at = vec![b'a' + self.random.below(26) as u8];
        let version = 1 + self
            .ranges
            .iter()
            .map(|range| range.version)
            .max()
            .unwrap_or(0);
        let id = 2 + self.ranges.len() as u64;
        let parent = (self.ranges.iter_mut())
            .find(|range| range.start < at && range.end.as_ref().is_none_or(|end| at < *end));
        if let Some(parent) = parent {
            let end = parent.end.replace(at.clone());
            parent.version = version;
            self.ranges.push(Range {
                id,
                version,
                start: at,
                end,
                leader: None,
            });
        }
    }

    fn range(&self, key: &[u8]) -> &Range {
        let holds = |range: &&Range| {
            range.start.as_slice() <= key && range.end.as_deref().is_none_or(|end| key < end)
        };
        self.ranges
            .iter()
            .find(holds)
            .expect("ranges tile the keys")
    }

    /// What a refusal tells: nothing, the route of the key, or all routes with that one first.
    fn routes_near(&self, key: &[u8]) -> Vec<Route> {
        let own = self.range(key);
        let others = self.ranges.iter().filter(|range| range.id != own.id);
        let told = [0, 1, usize::MAX][self.random.below(3)];
        let all = std::iter::once(own).chain(others);
        all.take(told).map(ModelCluster::route).collect()
    }

    fn route(range: &Range) -> Route {
        Route {
            range: range.id,
            version: range.version,
            conf: 1,
            start: range.start.clone(),
            end: range.end.clone(),
            leader: range.leader.map(|leader| (leader, 0)),
            address: range
                .leader
                .map(|leader| address(leader).to_string())
                .unwrap_or_default(),
        }
    }

    /// What a node does with a write.
    fn serve(&mut self, sent: &Sent) -> Result<(), (ErrorCode, Fate)> {
        let range = self.range(&sent.key);
        let target = sent.attempt.target;
        if target.is_some_and(|target| (target.range, target.version) != (range.id, range.version))
        {
            return Err((ErrorCode::Moved, Fate::NotApplied));
        }
        if range.leader != Some(sent.to) {
            return Err((ErrorCode::NotLeader, Fate::NotApplied));
        }
        let refusals = [
            (ErrorCode::Overloaded, Fate::NotApplied),
            (ErrorCode::NoQuorum, Fate::NotApplied),
            (ErrorCode::Recovering, Fate::NotApplied),
        ];
        if self.once_in(12) {
            return Err(refusals[self.random.below(refusals.len())]);
        }
        let RequestId {
            client,
            sequence,
            lowest_unanswered,
            ..
        } = sent.attempt.request_id;
        if self.applied.contains(&(client, sequence)) {
            return Ok(());
        }
        if sequence < self.mark {
            return Err((ErrorCode::SessionExpired, Fate::Unknown));
        }
        self.mark = self.mark.max(lowest_unanswered);
        if self.once_in(12) {
            let codes = [ErrorCode::Unknown, ErrorCode::NoQuorum];
            return Err((codes[self.random.below(2)], Fate::Unknown));
        }
        self.applied.insert((client, sequence));
        self.times[sent.call] += 1;
        match self.once_in(12) {
            true => Err((ErrorCode::Unknown, Fate::Unknown)),
            false => Ok(()),
        }
    }
}

fn address(node: u64) -> Arc<str> {
    Arc::from(format!("node{node}:1"))
}

fn node_at(address: &str) -> u64 {
    let all = 1..=NODES;
    let mut all = all.filter(|node| &*self::address(*node) == address);
    all.next().expect("the address of a node")
}

impl RunningCall<'_> {
    /// Carries out an action: decides when it has a result, and which. `Err`: the call has failed.
    fn take(
        &mut self,
        action: Action,
        model_cluster: &mut ModelCluster,
        core: &ClientCore,
        now: Instant,
    ) -> Result<(), Error> {
        let soon = now + ms(1 + model_cluster.random.below(15) as u64);
        let (due, event) = match action {
            Action::Fail(error) => return Err(error),
            Action::Pause(pause) => (now + pause, Event::Resume),
            Action::Refresh => {
                let result = match refresh(model_cluster, core, now) {
                    true => Ok(()),
                    false => Err("no node answers".into()),
                };
                (soon, Event::Refreshed(result))
            }
            Action::Open { endpoint, .. } => {
                let up = model_cluster.up[node_at(&endpoint.address) as usize - 1];
                if !up {
                    core.leave_out(&endpoint.address, now);
                }
                self.endpoint = Some(endpoint);
                match up {
                    true => (soon, Event::Opened),
                    false => (soon, Event::NotOpened("refused".into())),
                }
            }
            Action::Send(attempt) => {
                return {
                    self.send(attempt, model_cluster, now);
                    Ok(())
                };
            }
            Action::Wait => self.silence_or_late(now),
            Action::LookElsewhere => {
                refresh(model_cluster, core, now);
                (soon, Event::Looked)
            }
        };
        self.due = due.min(self.deadline);
        self.coming = Coming::Event(event);
        Ok(())
    }

    fn silence_or_late(&self, now: Instant) -> (Instant, Event) {
        match self.silence {
            Some(silence) if now + silence < self.until => (now + silence, Event::Silence),
            _ => (self.until, Event::Lost(Lost::Late)),
        }
    }

    fn send(&mut self, attempt: Attempt, model_cluster: &mut ModelCluster, now: Instant) {
        self.until = attempt.until;
        self.silence = attempt.silence;
        let endpoint = self.endpoint.take().expect("it was opened");
        let node = node_at(&endpoint.address);
        let sent = Sent {
            call: self.index,
            key: self.key.to_vec(),
            to: node,
            attempt,
        };
        let (due, event) = self.silence_or_late(now);
        self.due = due;
        self.coming = Coming::Event(event);
        if model_cluster.once_in(10) || !model_cluster.up[node as usize - 1] {
            if model_cluster.once_in(2) {
                model_cluster.late.push(sent);
            }
            return;
        }
        let served = model_cluster.serve(&sent);
        let timestamp = model_cluster.timestamp(now);
        if model_cluster.once_in(10) {
            return;
        }
        self.due = (now + ms(1 + model_cluster.random.below(15) as u64)).min(self.until);
        let breaks = model_cluster.once_in(10);
        self.coming = match served {
            _ if breaks => Coming::Event(Event::Lost(Lost::Broken("reset".into()))),
            Ok(()) => Coming::Answer,
            Err((code, fate)) => {
                let routes = model_cluster.routes_near(self.key);
                Coming::Event(Event::Refused {
                    node,
                    timestamp,
                    error: Box::new(ErrorReply {
                        code: Ok(code),
                        fate,
                        retry_after_ms: model_cluster.random.below(8) as u32,
                        message: format!("{code}"),
                        routes,
                    }),
                })
            }
        };
    }
}

/// The first node of the core's order that runs sends the directory, which may be an old one.
fn refresh(model_cluster: &ModelCluster, core: &ClientCore, now: Instant) -> bool {
    let (order, _) = core.order(now + TIMEOUT, now);
    let mut running = order
        .iter()
        .filter(|at| model_cluster.up[node_at(at) as usize - 1]);
    let Some(address) = running.next() else {
        return false;
    };
    let routes = model_cluster.ranges.iter().map(|range| {
        let mut route = ModelCluster::route(range);
        if model_cluster.once_in(4) {
            let leader = model_cluster.any_node();
            route.leader = Some((leader, 0));
            route.address = self::address(leader).to_string();
        }
        route
    });
    let node = node_at(address);
    core.take_directory(
        routes.collect(),
        model_cluster.timestamp(now),
        (node, address),
        now,
    );
    true
}

/// What a run of the model cluster came to.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    /// Writes that were applied twice, or whose fate is not true.
    wrong: Vec<String>,
    took: Duration,
    applied: Vec<u32>,
}

fn run(seed: u64, has_bug: bool) -> Found {
    let mut model_cluster = ModelCluster::new(seed);
    let mut now = model_cluster.began;
    let addresses = (1..=NODES).map(address).collect();
    let core = ClientCore::new(addresses, u128::from(seed) << 64 | 5, now);
    let keys: Vec<Vec<u8>> = (0..CALLS)
        .map(|_| vec![b'a' + model_cluster.random.below(26) as u8])
        .collect();
    let mut fates = vec![None; CALLS];
    let mut running: Vec<RunningCall<'_>> = Vec::new();
    let mut waiting = keys.iter().enumerate();
    loop {
        while running.len() < AT_ONCE {
            let Some((index, key)) = waiting.next() else {
                break;
            };
            let deadline = now + TIMEOUT;
            running.push(RunningCall {
                index,
                key,
                call: core.begin(Some(key), Kind::Write, deadline),
                deadline,
                endpoint: None,
                until: deadline,
                silence: None,
                due: now,
                coming: Coming::Event(Event::Resume),
            });
        }
        let next = (0..running.len()).min_by_key(|&at| running[at].due);
        let Some(mut next) = next.map(|at| running.swap_remove(at)) else {
            break;
        };
        now = now.max(next.due);
        model_cluster.happens();
        match std::mem::replace(&mut next.coming, Coming::Answer) {
            Coming::Answer => {
                next.call.answered(model_cluster.timestamp(now), now);
                fates[next.index] = Some(Ok(()));
            }
            Coming::Event(event) => {
                if has_bug && matches!(event, Event::Resume) {
                    next.call.forget_request_id();
                }
                let action = next.call.on(event, now);
                match next.take(action, &mut model_cluster, &core, now) {
                    Ok(()) => running.push(next),
                    Err(error) => {
                        assert!(now <= next.deadline, "seed {seed}: it ends too late");
                        fates[next.index] = Some(Err(error));
                    }
                }
            }
        }
    }
    // What is still on its way arrives.
    for late in std::mem::take(&mut model_cluster.late) {
        let _ = model_cluster.serve(&late);
    }
    let calls = fates.iter().zip(&model_cluster.times).enumerate();
    let wrong = calls.filter_map(|(call, (fate, &times))| {
        let fate = fate.as_ref().expect("every call ends");
        let is_right = match fate {
            Ok(()) => times == 1,
            Err(error) if error.code == ErrorCode::SessionExpired => false,
            Err(error) if error.fate == Fate::NotApplied => times == 0,
            Err(_) => times <= 1,
        };
        (!is_right).then(|| format!("call {call}: {fate:?}, applied {times} times"))
    });
    Found {
        wrong: wrong.collect(),
        took: now - model_cluster.began,
        applied: model_cluster.times.clone(),
    }
}

#[test]
fn writes_are_applied_at_most_once_and_their_fates_are_true() {
    for seed in 0..SEEDS {
        let found = run(seed, false);
        assert!(found.wrong.is_empty(), "seed {seed}: {:?}", found.wrong);
    }
}

#[test]
fn retries_under_a_new_request_id_are_found() {
    let is_found = |seed: &u64| !run(*seed, true).wrong.is_empty();
    let found = (0..SEEDS).filter(is_found).count() as u64;
    assert!(found > SEEDS / 2, "{found}");
}

#[test]
fn the_same_events_give_the_same_actions() {
    assert_eq!(run(3, false), run(3, false));
    assert_ne!(run(3, false), run(4, false));
}
