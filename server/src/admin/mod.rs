//! Health, metrics and the API over HTTP. All of it runs on the node's control thread; the data
//! path never waits for it.
//!
//! `/livez` says that the process runs. `/readyz` says whether the node serves: all its ranges are
//! recovered, most other nodes accept this one, and the node is not stopping; if not, it says why.
//! Both answer even before the node has a place in a cluster. `/metrics` shows the node's counters
//! for Prometheus. [`api`] serves `/api/v1/`.
//!
//! Heads and bodies of requests have limits, and so do connections and their lifetime ([`connections`]).

pub mod api;
pub mod batch;
mod body;
mod connections;
mod failure;
pub mod json;
mod metrics;
mod multi_get;
mod scan;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

use self::api::Api;
use self::body::Text;
use self::connections::{Access, Activity, Connections};
use self::failure::Failure;
use crate::descriptors::{ConnectionLimit, Shares};
use crate::peers::Peers;
use crate::probe::{ReportRequest, ShardReport};

/// How long the server pauses after the system refused to accept a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The longest life of a connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// A shard that does not report within this time is left out of the page.
const REPORT_TIMEOUT: Duration = Duration::from_millis(500);
/// The longest head of a request, in bytes. The continuation of a scan is two keys in hexadecimal
/// digits, and a key of arbitrary bytes in a path takes three characters a byte.
const HEAD_LEN_MAX: usize = 32 << 10;

/// The state of the node's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// The node recovers its ranges or waits for a place in a cluster.
    Starting = 0,
    /// The node serves.
    Ready = 1,
    /// The node is stopping.
    Draining = 2,
}

/// The node as the pages show it. It exists before the node has a folder and until the process
/// ends.
#[derive(Default)]
pub struct Node {
    phase: AtomicU8,
    /// Why the node does not serve yet.
    waits_for: Mutex<String>,
    serving: OnceLock<Serving>,
}

/// The parts of the node that exist once it has a folder and shards.
pub struct Serving {
    /// A channel to each shard, for requests for its report.
    pub shards: Vec<mpsc::Sender<ReportRequest>>,
    /// The cluster's id.
    pub cluster: String,
    /// The API over HTTP.
    pub api: Api,
    /// The connections to the other nodes.
    pub peers: Arc<Peers>,
    /// The shares of the descriptors' limit.
    pub descriptors: Shares,
    /// The slots of clients' connections.
    pub client_limit: Arc<ConnectionLimit>,
    /// The slots of other nodes' connections.
    pub peer_limit: Arc<ConnectionLimit>,
}

impl Node {
    /// Changes the state of the node's life.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::SeqCst);
    }

    /// The state of the node's life.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::SeqCst) {
            phase if phase == Phase::Ready as u8 => Phase::Ready,
            phase if phase == Phase::Draining as u8 => Phase::Draining,
            _ => Phase::Starting,
        }
    }

    /// Sets the reason why the node does not serve yet.
    pub fn wait_for(&self, reason: String) {
        *self
            .waits_for
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = reason;
    }

    /// Adds the parts that exist from now on.
    pub fn serve_from(&self, serving: Serving) {
        // A second call would change nothing; the start of the node calls it once.
        let _ = self.serving.set(serving);
    }

    /// The answer of `/readyz`: whether the node serves, and in what state it is.
    pub fn readiness(&self) -> (StatusCode, String) {
        let refused = self.serving.get().and_then(Serving::refused);
        let why = match self.phase() {
            Phase::Draining => "draining: the node is stopping".to_owned(),
            Phase::Ready => match refused {
                None => return (StatusCode::OK, "ready\n".to_owned()),
                Some(refused) if refused.by_most => refused.reason,
                Some(refused) => return (StatusCode::OK, format!("ready; {}\n", refused.reason)),
            },
            Phase::Starting if self.serving.get().is_some() => {
                "starting: ranges are being recovered".to_owned()
            }
            Phase::Starting => {
                let waits_for = self
                    .waits_for
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                if waits_for.is_empty() {
                    "starting: the data folder is being opened".to_owned()
                } else {
                    format!("waiting for a place in the cluster: {waits_for}")
                }
            }
        };
        (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"))
    }
}

/// The refusal of this node by others.
struct Refused {
    /// Whether so many nodes refuse it that the rest has no majority.
    by_most: bool,
    reason: String,
}

impl Serving {
    fn refused(&self) -> Option<Refused> {
        let refused = self.peers.refused_by();
        let reasons = refused
            .iter()
            .map(|(node, why)| format!("node {node}: {why}"));
        let reasons: Vec<String> = reasons.collect();
        (!reasons.is_empty()).then(|| Refused {
            by_most: reasons.len() * 2 >= self.peers.addresses().len(),
            reason: format!("refused by {}", reasons.join("; ")),
        })
    }

    /// The report of each shard; `None` for a shard that does not answer in time.
    async fn reports(&self) -> Vec<Option<ShardReport>> {
        let mut asked = Vec::new();
        for shard in &self.shards {
            let (ask, report) = oneshot::channel();
            // A shard whose queue of requests is full counts as one that does not answer.
            let sent = shard.try_send(ask).is_ok();
            asked.push(sent.then_some(report));
        }
        let until = tokio::time::Instant::now() + REPORT_TIMEOUT;
        let mut reports = Vec::new();
        for report in asked {
            let report = match report {
                Some(report) => tokio::time::timeout_at(until, report).await.ok(),
                None => None,
            };
            reports.push(report.and_then(Result::ok));
        }
        reports
    }
}

/// The bound listening socket of the pages.
pub struct Pages {
    listener: TcpListener,
    /// The bound address.
    pub address: SocketAddr,
}

impl Pages {
    /// Binds the listening socket.
    ///
    /// # Errors
    /// The address is taken or is not one of this machine's.
    pub async fn bind(address: SocketAddr) -> io::Result<Pages> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Pages { listener, address })
    }

    /// Accepts and serves connections, at most `connections_max` at a time, until the runtime ends.
    pub async fn serve(self, node: Arc<Node>, connections_max: usize) {
        let mut connections = Connections::new(connections_max);
        let mut refused = false;
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    if !std::mem::replace(&mut refused, true) {
                        tracing::warn!(%error, "connections to the admin pages cannot be accepted");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            refused = false;
            let (access, activity) = (connections.make_room(), Activity::new());
            let serving = serve_one(stream, node.clone(), access, activity.clone());
            connections.add(access, activity, tokio::spawn(serving).abort_handle());
        }
    }
}

async fn serve_one(stream: TcpStream, node: Arc<Node>, access: Access, activity: Activity) {
    let service = service_fn(move |request| {
        let (node, activity) = (node.clone(), activity.clone());
        async move { activity.busy_with(answer(node, access, request)).await }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.max_buf_size(HEAD_LEN_MAX);
    builder.keep_alive(access == Access::Any);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    // A client that disconnects early or is slow is no fault of the node.
    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
}

async fn answer(
    node: Arc<Node>,
    access: Access,
    request: Request<Incoming>,
) -> Result<Response<Text>, Infallible> {
    if access == Access::Probe && !matches!(request.uri().path(), "/livez" | "/readyz") {
        return Ok(text(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many connections: there is room for /livez and /readyz only\n",
        ));
    }
    if let Some(path) = request.uri().path().strip_prefix("/api/v1/") {
        let is_ready = node.phase() == Phase::Ready;
        let Some(serving) = node.serving.get().filter(|_| is_ready) else {
            return Ok(Failure::not_serving().response());
        };
        let path = path.to_owned();
        return Ok(serving.api.answer(&path, request).await);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(text(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET is served here\n",
        ));
    }
    Ok(match request.uri().path() {
        "/livez" => text(StatusCode::OK, "ok\n"),
        "/readyz" => {
            let (status, why) = node.readiness();
            text(status, why)
        }
        "/metrics" => match node.serving.get() {
            Some(serving) => {
                let reports = serving.reports().await;
                text(StatusCode::OK, metrics::render(serving, &reports))
            }
            None => text(StatusCode::SERVICE_UNAVAILABLE, "there are no shards yet\n"),
        },
        _ => text(
            StatusCode::NOT_FOUND,
            "there are /livez, /readyz, /metrics and /api/v1/\n",
        ),
    })
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Text> {
    let mut response = Response::new(Text::new(body.into()));
    *response.status_mut() = status;
    let plain = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, plain);
    response
}
