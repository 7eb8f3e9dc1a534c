//! The client: what a service calls.

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

/// A longer time for a call counts as this.
const TIMEOUT_MAX: Duration = Duration::from_hours(24);
/// A node that has not answered a try for so long may be gone: the call is tried elsewhere.
const TRY_TIMEOUT: Duration = Duration::from_millis(1500);
/// A node that has not answered a try within this, or a quarter of the remaining time, may have
/// lost the range to another: others are asked, while the try goes on.
const LOOK_ELSEWHERE: Duration = Duration::from_millis(500);

/// A time that a node finds too far ahead is waited for at most this long; a longer wait means that
/// a clock is wrong, and the client gives that time up.
const WAIT_FOR_CLOCK_MS: u32 = 100;
/// A call whose time is refused is tried again this often.
const CLOCK_TRIES: u32 = 4;

/// How a client is made.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Nodes to ask first, HOST:PORT each; names and `[::1]:7400` work.
    pub addresses: Vec<String>,
    /// How long a call may take, retries included; a day at most.
    pub timeout: Duration,
    /// The cluster that the client belongs to. `None`: that of the first node it meets, of the
    /// addresses in their order. A node of another cluster is not used.
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
    /// Held by the one that asks for the directory.
    pub asking: tokio::sync::Mutex<()>,
    /// How often the directory was told.
    pub told: AtomicU64,
}

/// A client of a RangeDB cluster. Clones share its session, directory and connections; it must be
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

/// Turns a reply into what a call returns; `None`: the reply is of another kind.
pub(crate) type Take<T> = fn(Reply<'_>, &Bytes) -> Option<T>;

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It changes nothing.
    Read,
    /// It changes keys, and has a name by which a retry is known.
    Write,
    /// It changes the cluster, and has no name: it is not tried again once it may have been taken.
    Order,
}

/// One call: what it asks, and what of it is the same for every try.
pub(crate) struct Call<'a, T> {
    /// The key that decides where it goes; `None`: any node.
    pub key: Option<&'a [u8]>,
    /// Makes the request's body, with the pair of a write.
    pub body: &'a (dyn Fn(Pair) -> RequestBody<'a> + Sync),
    /// What it does.
    pub kind: Kind,
    /// What to make of the reply.
    pub take: Take<T>,
    /// When to give up.
    pub deadline: Instant,
}

/// Where a try went: what was believed of the range, and the place.
pub(crate) type Tried = (Option<Target>, Place);

/// A reply, and who gave it.
struct Answered {
    frame: ReplyFrame,
    tried: Tried,
    node: u64,
}

/// What to do after a try that failed.
enum Next {
    /// What was believed of the range is stale: try again, the first time at once.
    Heal(Error),
    /// Try again after a pause, at least the one the error names.
    Later(Error),
    /// Give up.
    GiveUp(Error),
}

impl Client {
    /// Connects to one of the addresses that answers, and learns where keys are. From then on the
    /// client uses the nodes of one cluster alone; see [`ClientOptions::cluster`].
    ///
    /// # Errors
    /// [`ErrorCode::Unreachable`] if none answers in time or all that do belong to another cluster,
    /// [`ErrorCode::Invalid`] if none is given.
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

    /// The cluster that this client belongs to.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.inner.pool.cluster()
    }

    /// This client with another time for each call; session and connections are shared.
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

    /// The state of a node.
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

    /// Shows the cluster: a command in JSON, as the protocol's chapter tells, is answered in JSON
    /// by any node.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn admin(&self, command: &str) -> Result<String, Error> {
        self.admin_call(command, Kind::Read).await
    }

    /// Steers the cluster: as [`Client::admin`], for commands that change something. It is not
    /// tried again once it may have been taken.
    ///
    /// # Errors
    /// See [`Error`]; its fate tells what became of the order.
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

    /// Makes a call: finds its place, tries, and tries again as long as that makes sense.
    pub(crate) async fn call<T>(&self, call: Call<'_, T>) -> Result<T, Error> {
        limits::check(&(call.body)(Pair::default()))?;
        self.inner.budget.earn();
        let write = (call.kind == Kind::Write).then(|| self.inner.session.begin(call.deadline));
        let mut tries = 0;
        // Whether a try may have reached a server without an answer.
        let mut in_doubt = false;
        // What a node said last; that it reaches no majority is not forgotten for less.
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
            // The first retry heals a stale belief, and is free; a write in doubt is tried until
            // its fate is known; nothing that waits for a majority adds to anybody's load.
            let affordable = is_left
                || tries == 0
                || (in_doubt && call.kind == Kind::Write)
                || self.inner.budget.take();
            // A time that a node goes on refusing is not the session's, but in the request itself.
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
        // A node must leave time for the others.
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
        // Only what can go elsewhere is given up early; the node is told how long it is waited for.
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

    /// Waits for the reply to a try. While there is none, the other nodes are asked whether the key
    /// has gone elsewhere; if so, the try is given up.
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
                // That nobody tells where the key is changes nothing.
                _ = self.refresh(call.deadline) => {}
            }
            let found = call.key.and_then(|key| self.inner.directory.find(key));
            if found.is_some_and(|(_, place)| place != tried.1) {
                return Err(Lost::Late);
            }
        }
    }

    /// Where a call goes.
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

    /// What a reply means.
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
            // Another node may reach more of the others.
            ErrorCode::NoQuorum if call.kind != Kind::Order => {
                if let Some(key) = call.key {
                    self.inner.directory.forget(key, tried);
                }
                Next::Later(error)
            }
            // Either the time becomes possible by waiting, or it was given up.
            ErrorCode::ClockOutOfBounds if passes_soon => Next::Later(error),
            ErrorCode::ClockOutOfBounds => Next::Heal(error),
            // The time of this try, not of the call.
            ErrorCode::DeadlineExceeded if Instant::now() < call.deadline => Next::Heal(error),
            // Its entry may be applied yet: the next try learns it by the write's name.
            ErrorCode::Unknown if call.kind == Kind::Write => Next::Heal(error),
            ErrorCode::Overloaded
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
        // What is believed of this place may be wrong, too.
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

/// Whether a time that a node has refused is worth waiting for.
fn passes_soon(refused: &ErrorReply) -> bool {
    (1..=WAIT_FOR_CLOCK_MS).contains(&refused.retry_after_ms)
}

/// An error that says no more than that the last try came to nothing gives way to what a node said
/// before.
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

/// An error's last word on the write's fate.
fn settle(mut error: Error, kind: Kind, write: Option<Write<'_>>, in_doubt: bool) -> Error {
    match write {
        // An earlier try may yet be applied, whatever became of the last.
        Some(_) if in_doubt && error.fate == Fate::NotApplied => error.fate = Fate::Unknown,
        Some(write) if error.fate == Fate::NotApplied => write.answered(),
        Some(_) => {}
        // It was never tried again after a doubt.
        None if kind == Kind::Order => {}
        None => error.fate = Fate::NotApplied,
    }
    error
}
