//! The retry loop of a call: [`Client::call`] opens connections, sends, waits, pauses and asks for the
//! directory, as the [core](crate::core) decides, until the call has a result or the core gives up.
//!
//! The core, not this loop, decides which node is tried, how often and when. The loop runs in the task of
//! the caller.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rangedb_protocol::{
    ErrorReply, Reply, Request as WireRequest, RequestBody, Session as RequestId,
};

use crate::client::Client;
use crate::connection::{Connection, News, ReplyFrame, ReplyWait, Sent};
use crate::core::multi_get::{self, Source};
use crate::core::{Action, Attempt, Event, Kind, Lost};
use crate::error::Error;
use crate::limits;

/// Turns a reply into the result of a call; `None`: the reply is of the wrong kind.
pub(crate) type Take<T> = fn(Reply<'_>, &Bytes) -> Option<T>;

/// What a call asks for: the parts that are the same in every try.
pub(crate) struct Request<'a, T> {
    /// The key that decides where it goes; `None`: to any node.
    pub key: Option<&'a [u8]>,
    /// Makes the request's body; a write's body contains the request id.
    pub body: &'a (dyn Fn(RequestId) -> RequestBody<'a> + Sync),
    /// The kind of call.
    pub kind: Kind,
    /// Converts the reply.
    pub take: Take<T>,
    /// When the call gives up.
    pub deadline: Instant,
}

/// The connection of the present try, and its request.
#[derive(Default)]
struct Try {
    connection: Option<Arc<Connection>>,
    sent: Option<Sent>,
}

impl Client {
    /// Makes a call.
    pub(crate) async fn call<T>(&self, request: Request<'_, T>) -> Result<T, Error> {
        Ok(self.call_from(request).await?.0)
    }

    /// Makes a call: does what the core says, until there is a result or the core gives up. Gives the
    /// result, and where it came from.
    pub(crate) async fn call_from<T>(&self, request: Request<'_, T>) -> Result<(T, Source), Error> {
        limits::check(&(request.body)(RequestId::default()))?;
        let core = &self.inner.core;
        let mut call = core.begin(request.key, request.kind, request.deadline);
        let mut present = Try::default();
        let mut event = Event::Resume;
        loop {
            let news = match call.on(event, Instant::now()) {
                Action::Fail(error) => return Err(error),
                Action::Pause(pause) => {
                    if !pause.is_zero() {
                        tokio::time::sleep(pause).await;
                    }
                    event = Event::Resume;
                    continue;
                }
                Action::Refresh => {
                    // In a box, since it is large and rare.
                    let refresh = Box::pin(self.refresh(request.deadline));
                    event = Event::Refreshed(refresh.await);
                    continue;
                }
                Action::Open { endpoint, until } => {
                    event = match self.inner.pool.get(&endpoint, until).await {
                        Ok(connection) => {
                            present.connection = Some(connection);
                            Event::Opened
                        }
                        Err(reason) => Event::NotOpened(reason),
                    };
                    continue;
                }
                Action::Send(attempt) => present.send(&request, &attempt).await,
                Action::Wait => present.news().await,
                Action::LookElsewhere => {
                    let refresh = Box::pin(self.refresh(request.deadline));
                    match present.news_before(refresh).await {
                        Some(news) => news,
                        None => {
                            event = Event::Looked;
                            continue;
                        }
                    }
                }
            };
            event = match news {
                News::Silence => Event::Silence,
                News::Ended(Err(lost)) => Event::Lost(lost),
                News::Ended(Ok(frame)) => match present.read(&frame, request.take) {
                    Ok((value, timestamp)) => {
                        let endpoint = call.answered(timestamp, Instant::now());
                        let node = present.node();
                        return Ok((value, Source { node, endpoint }));
                    }
                    Err(event) => event,
                },
            };
        }
    }
}

impl Try {
    async fn send<T>(&mut self, request: &Request<'_, T>, attempt: &Attempt) -> News {
        let Some(connection) = &self.connection else {
            return News::Ended(Err(Lost::NotSent("there is no connection".into())));
        };
        let wait = ReplyWait {
            deadline: attempt.until,
            notify_every: attempt.silence,
        };
        let wire = WireRequest {
            body: (request.body)(attempt.request_id),
            target: attempt.target,
            deadline_ms: attempt.deadline_ms,
            token: attempt.token,
        };
        match connection.send(&wire, wait).await {
            Ok(sent) => self.sent.insert(sent).news().await,
            Err(lost) => News::Ended(Err(lost)),
        }
    }

    fn node(&self) -> u64 {
        self.connection.as_ref().map_or(0, |at| at.node())
    }

    async fn news(&mut self) -> News {
        match &mut self.sent {
            Some(sent) => sent.news().await,
            None => News::Ended(Err(Lost::NotSent("nothing was sent".into()))),
        }
    }

    /// The end of the try, if it comes before the end of something else.
    async fn news_before(&mut self, mut other: impl Future + Unpin) -> Option<News> {
        loop {
            tokio::select! {
                biased;
                news = self.news() => match news {
                    News::Ended(_) => return Some(news),
                    News::Silence => {}
                },
                _ = &mut other => return None,
            }
        }
    }

    fn refused(&self, timestamp: u64, error: Box<ErrorReply>) -> Event {
        Event::Refused {
            node: self.node(),
            timestamp,
            error,
        }
    }

    /// The result in a reply and the node's time, or the event of a call that goes on.
    fn read<T>(&self, frame: &ReplyFrame, take: Take<T>) -> Result<(T, u64), Event> {
        let (reply, timestamp) = Reply::decode(frame.kind, &frame.body)
            .map_err(|bad| Event::Unreadable(bad.to_string()))?;
        let reply = match reply {
            Reply::Error(error) => return Err(self.refused(timestamp, error)),
            reply => reply,
        };
        if let Reply::Values(values) = &reply {
            if let Some(error) = multi_get::refusal(values.keys()) {
                return Err(self.refused(timestamp, Box::new(error)));
            }
        }
        let value = take(reply, &frame.body);
        value
            .map(|value| (value, timestamp))
            .ok_or_else(|| Event::Unreadable("the server's reply is of the wrong kind".to_owned()))
    }
}
