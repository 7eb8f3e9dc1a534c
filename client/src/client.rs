//! The client of a cluster, and how it makes a call: routing, retries and errors.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rangedb_protocol::{
    ErrorReply, NodeState, Reply, Request, RequestBody, Session as Pair, Target,
};

use crate::cluster::ClusterId;
use crate::connection::{Lost, News, Patience, ReplyFrame, Sent};
use crate::directory::{Directory, Place};
use crate::error::{Error, ErrorCode, Fate};
use crate::limits;
use crate::pool::Pool;
use crate::retry::{self, Budget};
use crate::session::{Session, Write};

/// Longest timeout of a call; a longer one counts as this.
const TIMEOUT_MAX: Duration = Duration::from_hours(24);
/// A node that has not answered a try for this long may be gone: the call is tried elsewhere.
const TRY_TIMEOUT: Duration = Duration::from_millis(1500);
/// If a node has not answered a try for this long (or a quarter of the remaining time), the range
/// may have another leader: other nodes are asked for it while the try goes on.
const LOOK_ELSEWHERE: Duration = Duration::from_millis(500);

/// Longest wait, in milliseconds, for a timestamp that a node finds too far ahead. A longer wait
/// means that a clock is wrong, and the client drops the timestamp.
const WAIT_FOR_CLOCK_MS: u32 = 100;
/// How often a call is tried again whose timestamp is refused.
const CLOCK_TRIES: u32 = 4;

/// Options of a client.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Nodes to ask first, as `HOST:PORT`; names and `[::1]:7400` work.
    pub addresses: Vec<String>,
    /// Time limit of a call, retries included; at most a day.
    pub timeout: Duration,
    /// The cluster to which the client belongs. `None`: the cluster of the first node that it
    /// meets, in the order of the addresses. Nodes of another cluster are not used.
    pub cluster: Option<ClusterId>,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions {
            addresses: vec!["127.0.0.1:7400".to_owned()],
            timeout: Duration::from_secs(5),
            cluster: None,
        }
    }
}

pub(crate) struct Inner {
    pub addresses: Vec<Arc<str>>,
    pub session: Session,
    pub directory: Directory,
    pub budget: Budget,
    pub pool: Pool,
    /// Held by the caller that asks for the directory.
    pub asking: tokio::sync::Mutex<()>,
    /// How often the directory was received.
    pub told: AtomicU64,
}

/// A client of a RangeDB cluster. Clones share its session, directory and connections. It must be
/// used within a tokio runtime.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
    timeout: Duration,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("addresses", &self.inner.addresses)
            .finish_non_exhaustive()
    }
}

/// Turns a reply into the result of a call; `None`: the reply is of the wrong kind.
pub(crate) type Take<T> = fn(Reply<'_>, &Bytes) -> Option<T>;

/// What kind of call it is, which decides how it may be retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It changes nothing.
    Read,
    /// It changes keys. Its pair tells the cluster a retry from a new write.
    Write,
    /// It changes the cluster and has no pair: it is not tried again if it may have been received.
    Order,
}

/// A call: the parts that are the same in every try.
pub(crate) struct Call<'a, T> {
    /// The key that decides where it goes; `None`: to any node.
    pub key: Option<&'a [u8]>,
    /// Makes the request's body; a write's body contains the pair.
    pub body: &'a (dyn Fn(Pair) -> RequestBody<'a> + Sync),
    /// The kind of call.
    pub kind: Kind,
    /// Converts the reply.
    pub take: Take<T>,
    /// When the call gives up.
    pub deadline: Instant,
}

/// The route by which a try went: the range, if one was known, and the place.
pub(crate) type Tried = (Option<Target>, Place);

/// A reply, and which node sent it.
struct Answered {
    frame: ReplyFrame,
    tried: Tried,
    node: u64,
}

/// What to do after a failed try.
enum Next {
    /// The route was stale: try again, the first time at once.
    Heal(Error),
    /// Try again after a pause, at least as long as the error asks.
    Later(Error),
    /// Give up.
    GiveUp(Error),
}

impl Client {
    /// Connects to one of the addresses that answers, and fetches the directory. From then on the
    /// client uses nodes of one cluster alone; see [`ClientOptions::cluster`].
    ///
    /// # Errors
    /// [`ErrorCode::Unreachable`] if no node answers in time or all belong to another cluster,
    /// [`ErrorCode::Invalid`] without an address.
    pub async fn connect(options: ClientOptions) -> Result<Client, Error> {
        if options.addresses.is_empty() {
            let message = "no address of a node was given";
            return Err(Error::new(ErrorCode::Invalid, Fate::NotApplied, message));
        }
        let inner = Inner {
            addresses: options
                .addresses
                .iter()
                .map(|a| Arc::from(a.as_str()))
                .collect(),
            session: Session::new(),
            directory: Directory::default(),
            budget: Budget::new(),
            pool: Pool::new(options.cluster),
            asking: tokio::sync::Mutex::default(),
            told: AtomicU64::new(0),
        };
        let client = Client {
            inner: Arc::new(inner),
            timeout: options.timeout,
        };
        let deadline = client.deadline();
        let is_bound = client.cluster().is_some() || client.inner.addresses.len() == 1;
        if !is_bound {
            client.meet(deadline).await?;
        }
        client.refresh(deadline).await?;
        Ok(client)
    }

    /// The cluster to which this client belongs, once it has met a node.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.inner.pool.cluster()
    }

    /// This client with another timeout for each call. Session and connections are shared.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Client {
        Client {
            inner: self.inner.clone(),
            timeout,
        }
    }

    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.timeout.min(TIMEOUT_MAX)
    }

    /// The status of a node.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn status(&self) -> Result<NodeState, Error> {
        let body = |_| RequestBody::Status;
        let take: Take<NodeState> = |reply, _| match reply {
            Reply::Node(node) => Some(*node),
            _ => None,
        };
        let deadline = self.deadline();
        self.call(Call {
            key: None,
            body: &body,
            kind: Kind::Read,
            take,
            deadline,
        })
        .await
    }

    /// Reads the state of the cluster. The command is JSON, as the protocol's documentation
    /// describes; any node answers, in JSON.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn admin(&self, command: &str) -> Result<String, Error> {
        self.admin_call(command, Kind::Read).await
    }

    /// Changes the cluster: like [`Client::admin`], for commands that change something. It is not
    /// tried again if it may have been received.
    ///
    /// # Errors
    /// See [`Error`]; its fate tells whether the command was carried out.
    pub async fn admin_order(&self, command: &str) -> Result<String, Error> {
        self.admin_call(command, Kind::Order).await
    }

    async fn admin_call(&self, command: &str, kind: Kind) -> Result<String, Error> {
        let body = |_| RequestBody::Admin { command };
        let take: Take<String> = |reply, _| match reply {
            Reply::Admin { json } => Some(json.to_owned()),
            _ => None,
        };
        let deadline = self.deadline();
        self.call(Call {
            key: None,
            body: &body,
            kind,
            take,
            deadline,
        })
        .await
    }

    /// Makes a call: finds its route, tries, and tries again while that makes sense.
    pub(crate) async fn call<T>(&self, call: Call<'_, T>) -> Result<T, Error> {
        limits::check(&(call.body)(Pair::default()))?;
        self.inner.budget.earn();
        let write = (call.kind == Kind::Write).then(|| self.inner.session.begin(call.deadline));
        let mut tries = 0;
        // Whether a try may have reached a server and got no answer.
        let mut in_doubt = false;
        // The last error from a node. A `NoQuorum` is replaced by nothing but another one.
        let mut said: Option<Error> = None;
        let error = loop {
            let pair = write.as_ref().map(|write| write.pair()).unwrap_or_default();
            let next = match self.attempt(&call, pair).await {
                Ok(answered) => match self.judge(&call, &answered) {
                    Ok(value) => {
                        if let Some(write) = write {
                            write.answered();
                        }
                        return Ok(value);
                    }
                    Err(next) => {
                        if let Next::Heal(error) | Next::Later(error) = &next {
                            in_doubt |= error.fate == Fate::Unknown;
                        }
                        next
                    }
                },
                Err((lost, tried)) => {
                    in_doubt |= !matches!(lost, Lost::NotSent(_));
                    self.after_loss(&call, lost, tried.as_ref())
                }
            };
            let (error, pause) = match next {
                Next::GiveUp(error) => break error,
                Next::Heal(error) if tries == 0 => (error, Duration::ZERO),
                Next::Heal(error) | Next::Later(error) => {
                    let pause = retry::pause(tries, error.retry_after);
                    (error, pause)
                }
            };
            let is_left = error.code == ErrorCode::NoQuorum;
            let is_said = !matches!(
                error.code,
                ErrorCode::Unreachable | ErrorCode::DeadlineExceeded
            );
            if is_left || (is_said && said.as_ref().is_none_or(|e| e.code != ErrorCode::NoQuorum)) {
                said = Some(error.clone());
            }
            // The first retry is free, since it corrects a stale route. A write in doubt is retried
            // until its fate is known. Retries that wait for a majority add to no node's load.
            let affordable = is_left
                || tries == 0
                || (in_doubt && call.kind == Kind::Write)
                || self.inner.budget.take();
            // If nodes go on refusing the timestamp, it is in the request itself, not in the
            // session.
            let is_hopeless = error.code == ErrorCode::ClockOutOfBounds && tries >= CLOCK_TRIES;
            if !affordable || is_hopeless || Instant::now() + pause >= call.deadline {
                break error;
            }
            tries += 1;
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        };
        let error = explained(error, said);
        Err(settle(error, call.kind, write, in_doubt))
    }

    async fn attempt<T>(
        &self,
        call: &Call<'_, T>,
        pair: Pair,
    ) -> Result<Answered, (Lost, Option<Tried>)> {
        let not_sent = |message, tried| (Lost::NotSent(message), tried);
        let (target, place) = self.place(call).await.map_err(|e| not_sent(e, None))?;
        let tried = (target, place);
        let begun = Instant::now();
        let left = call.deadline.saturating_duration_since(begun);
        let others = (self.inner.addresses.iter()).any(|address| *address != tried.1.address);
        // One node must leave time for the others.
        let open_until = if others {
            begun + left / 3
        } else {
            call.deadline
        };
        let connection = match self.inner.pool.get(&tried.1, open_until).await {
            Ok(connection) => connection,
            Err(message) => return Err(not_sent(message, Some(tried))),
        };
        let now = Instant::now();
        let left = call.deadline.saturating_duration_since(now);
        // Only a call that can go elsewhere gives up a try early. The node gets the same time
        // limit.
        let until = match call.key {
            Some(_) if others => call.deadline.min(now + TRY_TIMEOUT),
            None if others && call.kind == Kind::Read => now + TRY_TIMEOUT.min(left / 2),
            _ => call.deadline,
        };
        let limit = until.saturating_duration_since(now);
        if limit.is_zero() {
            let message = "the deadline has passed".to_owned();
            return Err(not_sent(message, Some(tried)));
        }
        let request = Request {
            body: (call.body)(pair),
            target,
            deadline_ms: limit.as_millis().clamp(1, u32::MAX as u128) as u32,
            token: self.inner.session.token(),
        };
        let told_every = LOOK_ELSEWHERE.min(left / 4);
        let patience = Patience {
            deadline: until,
            told_every: (others && call.key.is_some()).then_some(told_every),
        };
        let answer = match connection.send(&request, patience).await {
            Ok(sent) => self.wait(call, &tried, sent).await,
            Err(lost) => Err(lost),
        };
        match answer {
            Ok(frame) => Ok(Answered {
                frame,
                tried,
                node: connection.node(),
            }),
            Err(lost) => Err((lost, Some(tried))),
        }
    }

    /// Waits for the reply to a try. While there is none, other nodes are asked where the range is;
    /// if it has moved, the try is given up.
    async fn wait<T>(
        &self,
        call: &Call<'_, T>,
        tried: &Tried,
        mut sent: Sent,
    ) -> Result<ReplyFrame, Lost> {
        loop {
            match sent.news().await {
                News::Ended(result) => return result,
                News::Silence => self.inner.pool.leave_out(&tried.1.address),
            }
            tokio::select! {
                biased;
                news = sent.news() => if let News::Ended(result) = news {
                    return result;
                },
                // If no node answers with the directory, the wait simply goes on.
                _ = self.refresh(call.deadline) => {}
            }
            let found = call.key.and_then(|key| self.inner.directory.find(key));
            if found.is_some_and(|(_, place)| place != tried.1) {
                return Err(Lost::Late);
            }
        }
    }

    /// Finds the route of a call.
    async fn place<T>(&self, call: &Call<'_, T>) -> Result<Tried, String> {
        if let Some(key) = call.key {
            if let Some((target, place)) = self.inner.directory.find(key) {
                return Ok((Some(target), place));
            }
            self.refresh(call.deadline)
                .await
                .map_err(|error| error.message)?;
            if let Some((target, place)) = self.inner.directory.find(key) {
                return Ok((Some(target), place));
            }
        }
        Ok((None, self.any_place()))
    }

    /// Gives the result of a reply, or what to do next.
    fn judge<T>(&self, call: &Call<'_, T>, answered: &Answered) -> Result<T, Next> {
        let frame = &answered.frame;
        let (reply, now) = match Reply::decode(frame.kind, &frame.body) {
            Ok(decoded) => decoded,
            Err(bad) => {
                let error = Error::new(ErrorCode::Internal, Fate::Unknown, bad.to_string());
                return Err(Next::GiveUp(error));
            }
        };
        self.inner.session.observe(now);
        match reply {
            Reply::Error(error) => {
                if error.code == Ok(ErrorCode::ClockOutOfBounds) && !passes_soon(&error) {
                    self.inner.session.step_back(now);
                }
                Err(self.after_error(call, *error, answered))
            }
            reply => (call.take)(reply, &frame.body).ok_or_else(|| {
                let message = "the server's reply is of the wrong kind";
                Next::GiveUp(Error::new(ErrorCode::Internal, Fate::Unknown, message))
            }),
        }
    }

    fn after_error<T>(&self, call: &Call<'_, T>, reply: ErrorReply, answered: &Answered) -> Next {
        let tried = &answered.tried;
        let code = reply.code.unwrap_or(ErrorCode::Internal);
        let passes_soon = passes_soon(&reply);
        let retry_after = Some(Duration::from_millis(u64::from(reply.retry_after_ms)))
            .filter(|after| !after.is_zero());
        let error = Error {
            code,
            fate: reply.fate,
            retry_after,
            message: reply.message,
        };
        match code {
            ErrorCode::Moved | ErrorCode::NotLeader => {
                if let Some(key) = call.key {
                    self.inner.directory.forget(key, tried);
                }
                if let Some(route) = reply.route {
                    let from = (answered.node, &tried.1.address);
                    self.inner.directory.learn(route, from);
                }
                Next::Heal(error)
            }
            // Another node may reach a majority.
            ErrorCode::NoQuorum if call.kind != Kind::Order => {
                if let Some(key) = call.key {
                    self.inner.directory.forget(key, tried);
                }
                Next::Later(error)
            }
            // Either the timestamp becomes possible by waiting, or the client has dropped it.
            ErrorCode::ClockOutOfBounds if passes_soon => Next::Later(error),
            ErrorCode::ClockOutOfBounds => Next::Heal(error),
            // This was the deadline of the try, not of the call.
            ErrorCode::DeadlineExceeded if Instant::now() < call.deadline => Next::Heal(error),
            // Its entry may still be applied: the next try finds that out by the pair.
            ErrorCode::Unknown if call.kind == Kind::Write => Next::Heal(error),
            ErrorCode::Overloaded
            | ErrorCode::Busy
            | ErrorCode::Recovering
            | ErrorCode::TooManyInFlight
            | ErrorCode::ShuttingDown => Next::Later(error),
            _ => Next::GiveUp(error),
        }
    }

    fn after_loss<T>(&self, call: &Call<'_, T>, lost: Lost, tried: Option<&Tried>) -> Next {
        let late = Instant::now() >= call.deadline;
        let fate = match lost {
            Lost::Late | Lost::Broken(_) => Fate::Unknown,
            Lost::NotSent(_) => Fate::NotApplied,
        };
        let code = match fate {
            Fate::NotApplied => ErrorCode::Unreachable,
            _ => ErrorCode::DeadlineExceeded,
        };
        let error = Error::new(code, fate, lost.to_string());
        if late || (call.kind == Kind::Order && fate == Fate::Unknown) {
            return Next::GiveUp(error);
        }
        // The cached route may be wrong, too.
        if let Some((_, place)) = tried
            && fate == Fate::Unknown
        {
            self.inner.pool.leave_out(&place.address);
        }
        if let (Some(key), Some(tried)) = (call.key, tried) {
            self.inner.directory.forget(key, tried);
        }
        Next::Heal(error)
    }
}

/// Whether it makes sense to wait until a refused timestamp becomes possible.
fn passes_soon(refused: &ErrorReply) -> bool {
    (1..=WAIT_FOR_CLOCK_MS).contains(&refused.retry_after_ms)
}

/// Replaces an error that says only that the last try failed by an earlier, more telling one.
fn explained(error: Error, said: Option<Error>) -> Error {
    let is_vague = matches!(
        error.code,
        ErrorCode::Unreachable
            | ErrorCode::DeadlineExceeded
            | ErrorCode::NotLeader
            | ErrorCode::Moved
            | ErrorCode::Unknown
    );
    match said {
        Some(known)
            if error.code == ErrorCode::Unreachable
                || (is_vague && known.code == ErrorCode::NoQuorum) =>
        {
            Error {
                fate: error.fate,
                ..known
            }
        }
        _ => error,
    }
}

/// Sets the final fate of a call that failed.
fn settle(mut error: Error, kind: Kind, write: Option<Write<'_>>, in_doubt: bool) -> Error {
    match write {
        // An earlier try may still be applied, whatever the last one did.
        Some(_) if in_doubt && error.fate == Fate::NotApplied => error.fate = Fate::Unknown,
        Some(write) if error.fate == Fate::NotApplied => write.answered(),
        Some(_) => {}
        // It was not tried again after a doubt, so the fate of the last try is that of the call.
        None if kind == Kind::Order => {}
        None => error.fate = Fate::NotApplied,
    }
    error
}
