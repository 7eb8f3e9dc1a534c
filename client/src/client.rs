//! The client: what a service calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rangedb_protocol::{
    ErrorReply, NodeState, Reply, Request, RequestBody, Session as Pair, Target,
};

use crate::connection::{Lost, ReplyFrame};
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
/// One node gets so long to tell the directory, then the next is asked.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// How a client is made.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Nodes to ask first, HOST:PORT each; names and `[::1]:7400` work.
    pub addresses: Vec<String>,
    /// How long a call may take, retries included; a day at most.
    pub timeout: Duration,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions {
            addresses: vec!["127.0.0.1:7400".to_owned()],
            timeout: Duration::from_secs(5),
        }
    }
}

struct Inner {
    addresses: Vec<Arc<str>>,
    session: Session,
    directory: Directory,
    budget: Budget,
    pool: Pool,
    /// Held by the one that asks for the directory.
    asking: tokio::sync::Mutex<()>,
    /// How often the directory was told.
    told: AtomicU64,
}

/// A client of a RangeDB cluster. Clones share its session, directory and connections; it must be
/// used within a tokio runtime.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
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
type Tried = (Option<Target>, Place);

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
    /// Connects to the first of the addresses that answers, and learns where keys are.
    ///
    /// # Errors
    /// [`ErrorCode::Unreachable`] if none answers in time, [`ErrorCode::Invalid`] if none is given.
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
            pool: Pool::default(),
            asking: tokio::sync::Mutex::default(),
            told: AtomicU64::new(0),
        };
        let client = Client {
            inner: Arc::new(inner),
            timeout: options.timeout,
        };
        client.refresh(client.deadline()).await?;
        Ok(client)
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

    /// Asks the given nodes in turn, from a random one on, for the directory. Of several that want
    /// it at a time one asks.
    async fn refresh(&self, deadline: Instant) -> Result<(), Error> {
        let inner = &self.inner;
        let unreachable = |message| Error::new(ErrorCode::Unreachable, Fate::NotApplied, message);
        let told = inner.told.load(Ordering::Acquire);
        let asking = tokio::time::timeout_at(deadline.into(), inner.asking.lock()).await;
        let Ok(_asking) = asking else {
            return Err(unreachable("no node told the directory in time".to_owned()));
        };
        if inner.told.load(Ordering::Acquire) != told {
            return Ok(());
        }
        let count = inner.addresses.len();
        let first = rand::random_range(0..count);
        let mut addresses: Vec<&Arc<str>> = inner
            .addresses
            .iter()
            .cycle()
            .skip(first)
            .take(count)
            .collect();
        // Those that failed a short time ago come last.
        addresses.sort_by_key(|address| inner.pool.is_left_out(address));
        let mut failures = Vec::new();
        for address in addresses {
            let place = Place {
                address: address.clone(),
                shard: None,
            };
            let ask_until = deadline.min(Instant::now() + ASK_TIMEOUT);
            match self.ask_directory(&place, ask_until).await {
                Ok(()) => {
                    inner.told.fetch_add(1, Ordering::AcqRel);
                    return Ok(());
                }
                Err(message) => failures.push(message),
            }
        }
        Err(unreachable(format!(
            "no node answers: {}",
            failures.join("; ")
        )))
    }

    async fn ask_directory(&self, place: &Place, deadline: Instant) -> Result<(), String> {
        let connection = self.inner.pool.get(place, deadline).await?;
        let token = self.inner.session.token();
        let request = Request {
            body: RequestBody::Directory,
            target: None,
            deadline_ms: 0,
            token,
        };
        let reply = connection.call(&request, deadline).await;
        let reply = reply.map_err(|lost| format!("{}: {lost:?}", place.address))?;
        match Reply::decode(reply.kind, &reply.body) {
            Ok((Reply::Routes(routes), now)) => {
                self.inner.session.observe(now);
                for route in routes {
                    self.inner.directory.learn(route, &place.address);
                }
                Ok(())
            }
            Ok((Reply::Error(error), _)) => Err(format!("{}: {}", place.address, error.message)),
            Ok(_) => Err(format!("{}: a reply of the wrong kind", place.address)),
            Err(bad) => Err(format!("{}: {bad}", place.address)),
        }
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
                Ok((frame, tried)) => match self.judge(&call, &frame, &tried) {
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
            if !affordable || Instant::now() + pause >= call.deadline {
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
    ) -> Result<(ReplyFrame, Tried), (Lost, Option<Tried>)> {
        let not_sent = |message, tried| (Lost::NotSent(message), tried);
        let (target, place) = self.place(call).await.map_err(|e| not_sent(e, None))?;
        let tried = (target, place);
        let connection = match self.inner.pool.get(&tried.1, call.deadline).await {
            Ok(connection) => connection,
            Err(message) => return Err(not_sent(message, Some(tried))),
        };
        let now = Instant::now();
        // Only what can go elsewhere is given up early; the node is told how long it is waited for.
        let elsewhere =
            (call.key.is_some() || call.kind == Kind::Read) && self.inner.addresses.len() > 1;
        let try_until = if elsewhere {
            call.deadline.min(now + TRY_TIMEOUT)
        } else {
            call.deadline
        };
        let left = try_until.saturating_duration_since(now);
        if left.is_zero() {
            let message = "the deadline has passed".to_owned();
            return Err(not_sent(message, Some(tried)));
        }
        let request = Request {
            body: (call.body)(pair),
            target,
            deadline_ms: left.as_millis().clamp(1, u32::MAX as u128) as u32,
            token: self.inner.session.token(),
        };
        match connection.call(&request, try_until).await {
            Ok(frame) => Ok((frame, tried)),
            Err(lost) => Err((lost, Some(tried))),
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

    /// Any node, if possible one that has not failed a short time ago.
    fn any_place(&self) -> Place {
        let addresses = &self.inner.addresses;
        let first = rand::random_range(0..addresses.len());
        let mut all = addresses.iter().cycle().skip(first).take(addresses.len());
        let fit = all.find(|address| !self.inner.pool.is_left_out(address));
        let address = fit.or(addresses.get(first)).cloned();
        Place {
            address: address.unwrap_or_default(),
            shard: None,
        }
    }

    /// What a reply means.
    fn judge<T>(&self, call: &Call<'_, T>, frame: &ReplyFrame, tried: &Tried) -> Result<T, Next> {
        let (reply, now) = match Reply::decode(frame.kind, &frame.body) {
            Ok(decoded) => decoded,
            Err(bad) => {
                let error = Error::new(ErrorCode::Internal, Fate::Unknown, bad.to_string());
                return Err(Next::GiveUp(error));
            }
        };
        self.inner.session.observe(now);
        match reply {
            Reply::Error(error) => Err(self.after_error(call, *error, tried)),
            reply => (call.take)(reply, &frame.body).ok_or_else(|| {
                let message = "the server's reply is of the wrong kind";
                Next::GiveUp(Error::new(ErrorCode::Internal, Fate::Unknown, message))
            }),
        }
    }

    fn after_error<T>(&self, call: &Call<'_, T>, reply: ErrorReply, tried: &Tried) -> Next {
        let code = reply.code.unwrap_or(ErrorCode::Internal);
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
                    self.inner.directory.learn(route, &tried.1.address);
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
        let (fate, message) = match lost {
            Lost::Late => (
                Fate::Unknown,
                "no reply came within the time given".to_owned(),
            ),
            Lost::Broken(message) => (Fate::Unknown, format!("the connection broke: {message}")),
            Lost::NotSent(message) => (Fate::NotApplied, message),
        };
        let code = match fate {
            Fate::NotApplied => ErrorCode::Unreachable,
            _ => ErrorCode::DeadlineExceeded,
        };
        let error = Error::new(code, fate, message);
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
