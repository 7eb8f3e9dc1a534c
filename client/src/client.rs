//! The client: what a service calls.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rangedb_protocol::{
    ErrorReply, NodeState, Reply, Request, RequestBody, Session as Pair, Target,
};
use tokio::sync::OnceCell;

use crate::connection::{Connection, Lost, ReplyFrame};
use crate::directory::{Directory, Place};
use crate::error::{Error, ErrorCode, Fate};
use crate::retry::{self, Budget};
use crate::session::Session;

/// How a client is made.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Nodes to ask first, HOST:PORT each; names and `[::1]:7400` work.
    pub addresses: Vec<String>,
    /// How long a call may take, retries included.
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

type Slot = Arc<OnceCell<Arc<Connection>>>;

struct Inner {
    addresses: Vec<Arc<str>>,
    session: Session,
    directory: Directory,
    budget: Budget,
    connections: Mutex<HashMap<Place, Slot>>,
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

/// One call: what it asks, and what of it is the same for every try.
pub(crate) struct Call<'a, T> {
    /// The key that decides where it goes; `None`: any node.
    pub key: Option<&'a [u8]>,
    /// Makes the request's body, with the pair of a write.
    pub body: &'a (dyn Fn(Pair) -> RequestBody<'a> + Sync),
    /// Whether it changes anything.
    pub is_write: bool,
    /// What to make of the reply.
    pub take: Take<T>,
    /// When to give up.
    pub deadline: Instant,
}

/// What to do after a try that failed.
enum Next {
    /// Try again after this long.
    After(Duration),
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
            connections: Mutex::default(),
        };
        let client = Client {
            inner: Arc::new(inner),
            timeout: options.timeout,
        };
        client.refresh(Instant::now() + options.timeout).await?;
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
        Instant::now() + self.timeout
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
            is_write: false,
            take,
            deadline,
        })
        .await
    }

    /// Asks the given nodes in turn, from a random one on, for the directory.
    async fn refresh(&self, deadline: Instant) -> Result<(), Error> {
        let addresses = &self.inner.addresses;
        let first = rand::random_range(0..addresses.len());
        let mut failures = Vec::new();
        for address in addresses.iter().cycle().skip(first).take(addresses.len()) {
            let place = Place {
                address: address.clone(),
                shard: None,
            };
            match self.ask_directory(&place, deadline).await {
                Ok(()) => return Ok(()),
                Err(message) => failures.push(message),
            }
        }
        let message = format!("no node answers: {}", failures.join("; "));
        Err(Error::new(
            ErrorCode::Unreachable,
            Fate::NotApplied,
            message,
        ))
    }

    async fn ask_directory(&self, place: &Place, deadline: Instant) -> Result<(), String> {
        let connection = self.connection(place, deadline).await?;
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

    /// The connection to a place, opened if there is none.
    async fn connection(
        &self,
        place: &Place,
        deadline: Instant,
    ) -> Result<Arc<Connection>, String> {
        let slot = self.slot(place);
        let open = slot.get_or_try_init(|| async {
            let open = Connection::open(place);
            match tokio::time::timeout_at(deadline.into(), open).await {
                Ok(opened) => opened.map(Arc::new),
                Err(_) => Err(format!("{}: no answer in time", place.address)),
            }
        });
        open.await.cloned()
    }

    fn slot(&self, place: &Place) -> Slot {
        let mut connections = self
            .inner
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let slot = connections.entry(place.clone()).or_default();
        if slot.get().is_some_and(|connection| connection.is_broken()) {
            *slot = Slot::default();
        }
        slot.clone()
    }

    /// Makes a call: finds its place, tries, and tries again as long as that makes sense.
    pub(crate) async fn call<T>(&self, call: Call<'_, T>) -> Result<T, Error> {
        self.inner.budget.earn();
        let write = call
            .is_write
            .then(|| self.inner.session.begin(call.deadline));
        let mut tries = 0;
        // Whether a try may have reached a server without an answer.
        let mut in_doubt = false;
        loop {
            let pair = write.as_ref().map(|write| write.pair()).unwrap_or_default();
            let next = match self.attempt(&call, pair).await {
                Ok(frame) => match self.judge(&call, &frame) {
                    Ok(value) => {
                        if let Some(write) = write {
                            write.answered();
                        }
                        return Ok(value);
                    }
                    Err(next) => next,
                },
                Err((lost, place)) => {
                    in_doubt |= !matches!(lost, Lost::NotSent(_));
                    self.after_loss(&call, lost, place)
                }
            };
            let error = match next {
                Next::GiveUp(error) => error,
                Next::After(pause) => {
                    let pause = retry::pause(tries, Some(pause));
                    let in_time = Instant::now() + pause < call.deadline;
                    // The first retry heals a stale belief, and is free.
                    if in_time && (tries == 0 || self.inner.budget.take()) {
                        tries += 1;
                        tokio::time::sleep(pause).await;
                        continue;
                    }
                    Error::new(
                        ErrorCode::DeadlineExceeded,
                        Fate::NotApplied,
                        "no try succeeded within the time given",
                    )
                }
            };
            return Err(self.settle(error, write, in_doubt));
        }
    }

    /// An error's last word on the write's fate.
    fn settle(
        &self,
        mut error: Error,
        write: Option<crate::session::Write<'_>>,
        in_doubt: bool,
    ) -> Error {
        match write {
            // An earlier try may yet be applied, whatever became of the last.
            Some(_) if in_doubt && error.fate == Fate::NotApplied => error.fate = Fate::Unknown,
            Some(write) if error.fate == Fate::NotApplied => write.answered(),
            Some(_) => {}
            None => error.fate = Fate::NotApplied,
        }
        error
    }

    async fn attempt<T>(
        &self,
        call: &Call<'_, T>,
        pair: Pair,
    ) -> Result<ReplyFrame, (Lost, Option<Place>)> {
        let (target, place) = self
            .place(call)
            .await
            .map_err(|e| (Lost::NotSent(e), None))?;
        let connection = self.connection(&place, call.deadline).await;
        let connection =
            connection.map_err(|message| (Lost::NotSent(message), Some(place.clone())))?;
        let left = call.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err((
                Lost::NotSent("the deadline has passed".to_owned()),
                Some(place),
            ));
        }
        let request = Request {
            body: (call.body)(pair),
            target,
            deadline_ms: left.as_millis().clamp(1, u32::MAX as u128) as u32,
            token: self.inner.session.token(),
        };
        connection
            .call(&request, call.deadline)
            .await
            .map_err(|lost| (lost, Some(place)))
    }

    /// Where a call goes.
    async fn place<T>(&self, call: &Call<'_, T>) -> Result<(Option<Target>, Place), String> {
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
        let addresses = &self.inner.addresses;
        let address = addresses
            .get(rand::random_range(0..addresses.len()))
            .cloned();
        let address = address.ok_or_else(|| "no address".to_owned())?;
        Ok((
            None,
            Place {
                address,
                shard: None,
            },
        ))
    }

    /// What a reply means.
    fn judge<T>(&self, call: &Call<'_, T>, frame: &ReplyFrame) -> Result<T, Next> {
        let (reply, now) = match Reply::decode(frame.kind, &frame.body) {
            Ok(decoded) => decoded,
            Err(bad) => {
                let error = Error::new(ErrorCode::Internal, Fate::Unknown, bad.to_string());
                return Err(Next::GiveUp(error));
            }
        };
        self.inner.session.observe(now);
        match reply {
            Reply::Error(error) => Err(self.after_error(call, *error)),
            reply => (call.take)(reply, &frame.body).ok_or_else(|| {
                let message = "the server's reply is of the wrong kind";
                Next::GiveUp(Error::new(ErrorCode::Internal, Fate::Unknown, message))
            }),
        }
    }

    fn after_error<T>(&self, call: &Call<'_, T>, reply: ErrorReply) -> Next {
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
                    let known = self.inner.directory.find(key);
                    self.inner.directory.forget(key);
                    if let (Some(route), Some((_, place))) = (reply.route, known) {
                        self.inner.directory.learn(route, &place.address);
                    }
                }
                Next::After(retry_after.unwrap_or_default())
            }
            ErrorCode::Overloaded
            | ErrorCode::Recovering
            | ErrorCode::TooManyInFlight
            | ErrorCode::ShuttingDown => Next::After(retry_after.unwrap_or_default()),
            _ => Next::GiveUp(error),
        }
    }

    fn after_loss<T>(&self, call: &Call<'_, T>, lost: Lost, place: Option<Place>) -> Next {
        let late = Instant::now() >= call.deadline;
        let (fate, message) = match lost {
            Lost::Late => (
                Fate::Unknown,
                "no reply came within the time given".to_owned(),
            ),
            Lost::Broken(message) => (Fate::Unknown, format!("the connection broke: {message}")),
            Lost::NotSent(message) => (Fate::NotApplied, message),
        };
        if !late {
            // What is believed of this place may be wrong, too.
            if let (Some(key), Some(_)) = (call.key, place) {
                self.inner.directory.forget(key);
            }
            return Next::After(Duration::ZERO);
        }
        let code = match fate {
            Fate::NotApplied => ErrorCode::Unreachable,
            _ => ErrorCode::DeadlineExceeded,
        };
        Next::GiveUp(Error::new(code, fate, message))
    }
}
