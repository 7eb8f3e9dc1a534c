//! `GET /api/v1/stream`: one event each second for every open page.
//!
//! The event `second` holds what this node did in the last second ([`second`]), the event `view`
//! what the manager knows of the cluster ([`view`]), every few seconds. They are made once for all
//! viewers, by a task that lives as long as there are any: while nobody looks, nothing is computed. A
//! viewer that does not take its events misses some; one that is gone is forgotten. Runs on the control
//! thread.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Either;
use hyper::body::{Body, Frame};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Response};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::second::Seconds;
use super::view;
use crate::admin::Node;
use crate::admin::body::Text;
use crate::admin::connections::{Activity, Streaming};
use crate::admin::failure::Failure;

/// The path of the stream.
pub const PATH: &str = "/api/v1/stream";
/// The most pages that may be open at once.
const VIEWERS_MAX: usize = 32;
/// Events that may wait for one viewer; further ones are left out.
const EVENTS_WAITING_MAX: usize = 4;
const INTERVAL: Duration = Duration::from_secs(1);
/// The time from one view of the cluster to the next, in seconds. A view of 10,000 ranges has about
/// a megabyte.
const VIEW_INTERVAL: u64 = 5;
/// What a browser hears first: when to connect again after the stream has ended.
const GREETING: &[u8] = b"retry: 2000\n\n";

/// The open pages.
#[derive(Default)]
pub struct Viewers(Mutex<Open>);

#[derive(Default)]
struct Open {
    viewers: Vec<mpsc::Sender<Bytes>>,
    /// Whether the task that makes the events is there.
    is_told: bool,
    /// The last view of the cluster, which each new viewer gets first.
    view: Option<Bytes>,
}

/// The body of a stream: what one viewer receives.
pub struct Viewer {
    events: mpsc::Receiver<Bytes>,
    /// Keeps the connection, also while there is nothing to tell.
    _streaming: Streaming,
}

impl Body for Viewer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let polled = self.events.poll_recv(cx);
        polled.map(|event| event.map(|event| Ok(Frame::data(event))))
    }
}

impl Viewers {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a viewer, if there is room, and says whether the task that makes the events must be started.
    fn add(&self, activity: &Activity) -> Option<(Viewer, bool)> {
        let mut open = self.open();
        open.viewers.retain(|viewer| !viewer.is_closed());
        if open.viewers.len() >= VIEWERS_MAX {
            return None;
        }
        let (viewer, events) = mpsc::channel(EVENTS_WAITING_MAX);
        let first = [Some(Bytes::from_static(GREETING)), open.view.clone()];
        for event in first.into_iter().flatten() {
            // A new channel has room for both.
            let _ = viewer.try_send(event);
        }
        open.viewers.push(viewer);
        let starts = !std::mem::replace(&mut open.is_told, true);
        let viewer = Viewer {
            events,
            _streaming: activity.streaming(),
        };
        Some((viewer, starts))
    }

    /// Sends an event to all viewers; `false` if there are none any more, and the task must end.
    fn tell(&self, event: &Bytes) -> bool {
        let mut open = self.open();
        open.viewers.retain(|viewer| {
            // A viewer that is too slow misses this event.
            let sent = viewer.try_send(event.clone());
            !matches!(sent, Err(mpsc::error::TrySendError::Closed(_)))
        });
        if open.viewers.is_empty() {
            *open = Open::default();
            return false;
        }
        true
    }

    fn keep_view(&self, event: &Bytes) {
        self.open().view = Some(event.clone());
    }
}

/// Answers a request for the stream.
pub fn answer(
    node: &Arc<Node>,
    method: &Method,
    activity: &Activity,
) -> Response<Either<Text, Viewer>> {
    let body = match *method {
        Method::GET => {
            let added = match node.serving.get() {
                Some(_) => node.viewers.add(activity),
                None => return Failure::not_serving().response().map(Either::Left),
            };
            let Some((viewer, starts)) = added else {
                let refused = Failure::too_many_viewers(VIEWERS_MAX);
                return refused.response().map(Either::Left);
            };
            if starts {
                tokio::spawn(tell_viewers(node.clone()));
            }
            Either::Right(viewer)
        }
        Method::HEAD => Either::Left(Text::default()),
        _ => return Failure::method("GET, HEAD").response().map(Either::Left),
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Sends an event each second for as long as there are viewers.
async fn tell_viewers(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seconds = Seconds::default();
    let mut view: Option<JoinHandle<Bytes>> = None;
    for tick in 0_u64.. {
        ticks.tick().await;
        let Some(serving) = node.serving.get() else {
            return;
        };
        let reports = serving.reports().await;
        let (status, why) = node.readiness_by(&reports);
        let readiness = (status.is_success(), why.trim_end());
        let second = seconds.next(serving, readiness, reports);
        if !node.viewers.tell(&event("second", &second)) {
            return;
        }
        if let Some(made) = view.take_if(|view| view.is_finished())
            && let Ok(made) = made.await
        {
            node.viewers.keep_view(&made);
            node.viewers.tell(&made);
        }
        if tick % VIEW_INTERVAL == 0 && view.is_none() {
            let node = node.clone();
            view = Some(tokio::spawn(async move {
                event("view", &view::of(&node).await)
            }));
        }
    }
}

/// An event as it is sent: its name, and one line of JSON.
fn event(name: &str, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).unwrap_or_else(|error| {
        // Maps with keys that are no text are all that cannot be said in JSON.
        tracing::error!(%error, name, "an event of the page cannot be written");
        "null".to_owned()
    });
    Bytes::from(format!("event: {name}\ndata: {data}\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_viewers_is_bounded_and_those_that_left_make_room() {
        let viewers = Viewers::default();
        let activity = Activity::new();
        let add = || viewers.add(&activity);
        let mut open: Vec<(Viewer, bool)> = std::iter::from_fn(add).take(100).collect();
        assert_eq!(open.len(), VIEWERS_MAX);
        let starts = open.iter().filter(|(_, starts)| *starts);
        assert_eq!(starts.count(), 1, "one task serves all");
        open.pop();
        assert!(add().is_some_and(|(_, starts)| !starts));
    }

    #[test]
    fn the_task_ends_with_the_last_viewer_and_begins_with_the_next() {
        let viewers = Viewers::default();
        let word = Bytes::from_static(b"x");
        let (viewer, _) = viewers.add(&Activity::new()).expect("room");
        assert!(viewers.tell(&word));
        viewers.keep_view(&word);
        drop(viewer);
        assert!(!viewers.tell(&word));
        let (mut viewer, starts) = viewers.add(&Activity::new()).expect("room");
        assert!(starts);
        // The view from before is too old.
        assert_eq!(viewer.events.try_recv().ok().as_deref(), Some(GREETING));
        assert!(viewer.events.try_recv().is_err());
    }

    #[test]
    fn a_viewer_that_takes_nothing_misses_events_and_takes_no_memory() {
        let viewers = Viewers::default();
        let (mut slow, _) = viewers.add(&Activity::new()).expect("room");
        for _ in 0..100 {
            assert!(viewers.tell(&Bytes::from_static(b"x")));
        }
        let taken = std::iter::from_fn(|| slow.events.try_recv().ok()).count();
        assert_eq!(taken, EVENTS_WAITING_MAX);
        assert!(viewers.tell(&Bytes::from_static(b"y")));
        assert_eq!(
            slow.events.try_recv().ok().as_deref(),
            Some(b"y".as_slice())
        );
    }

    #[test]
    fn an_event_is_one_line_whatever_it_holds() {
        let event = event("view", &"a\nb\r\u{2028}</script>\"");
        let text = std::str::from_utf8(&event).expect("text");
        assert!(text.starts_with("event: view\ndata: \"a\\nb\\r"), "{text}");
        assert_eq!(text.matches('\n').count(), 3, "{text}");
        assert!(!text.contains('\r'), "{text}");
    }
}
