//! Health, metrics and the API over HTTP. All of it runs on the node's control thread; the data
//! path never waits for it.
//!
//! `/livez` says that the process runs. `/readyz` says whether the node serves: all its ranges are
//! recovered and have a majority, most other nodes accept this one, and the node is not stopping; if
//! not, it says why. Both answer even before the node has a place in a cluster. `/metrics` shows the node's counters
//! for Prometheus. [`page`] shows the node and its cluster to people, at `/`. [`api`] serves `/api/v1/`.
//! [`collect`] gives the history the work of each minute, and [`cluster_history`] sums the histories of all nodes up.
//!
//! Heads and bodies of requests have limits, and so do connections and their lifetime ([`connections`]).
//! Other sites than the node's own are refused ([`origin`]).

pub mod api;
pub mod batch;
mod body;
pub mod cluster_history;
pub mod collect;
mod connections;
mod failure;
#[cfg(test)]
mod fuzz;
mod history;
pub mod json;
mod metrics;
mod multi_get;
mod orders;
mod origin;
mod own_client;
mod page;
mod readiness;
mod scan;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Either;
use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

use self::api::Api;
use self::body::Text;
use self::connections::{Access, Activity, Connections, End, Watched};
use self::failure::Failure;
use self::metrics::Scrape;
use self::page::stream::{Viewer, Viewers};
use crate::descriptors::{ConnectionLimit, Shares};
use crate::node_settings::Settings;
use crate::peers::Peers;
use crate::probe::{ReportRequest, ShardProbe, ShardReport};

/// How long the server pauses after the system refused to accept a connection.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// A shard that does not report within this time is left out of the page.
const REPORT_TIMEOUT: Duration = Duration::from_millis(500);
/// The longest head of a request, in bytes. The continuation of a scan is three keys in hexadecimal
/// digits, and a key of arbitrary bytes in a path takes three characters a byte.
const HEAD_LEN_MAX: usize = 32 << 10;
/// The texts for probes and scrapers.
const TEXTS: [&str; 3] = ["/livez", "/readyz", "/metrics"];
/// The response to a head that does not arrive.
const HEAD_TOO_LATE: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// A body in one piece, or one that goes on.
type Body = Either<Text, Viewer>;

/// The state of the node's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// The node recovers its ranges or waits for a place in a cluster.
    Starting = 0,
    /// The node serves.
    Ready = 1,
    /// The node is shutting down: it takes no more requests.
    ShuttingDown = 2,
    /// The node is about to stop, and still serves.
    Leaving = 3,
}

impl Phase {
    /// Whether the node takes requests.
    fn serves(self) -> bool {
        matches!(self, Phase::Ready | Phase::Leaving)
    }
}

/// The node as the pages show it. It exists before the node has a folder and until the process
/// ends.
pub struct Node {
    /// The settings, which name the hosts and origins that the pages are served for.
    settings: Arc<Settings>,
    phase: AtomicU8,
    /// Why the node does not serve yet.
    waits_for: Mutex<String>,
    serving: OnceLock<Serving>,
    viewers: Viewers,
}

/// The parts of the node that exist once it has a folder and shards.
pub struct Serving {
    /// The node's id.
    pub id: u64,
    /// When the process started.
    pub started: Instant,
    /// The folder of all data.
    pub data_dir: PathBuf,
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
    /// A node that is starting, with these settings.
    pub fn new(settings: Arc<Settings>) -> Node {
        Node {
            settings,
            phase: AtomicU8::new(Phase::Starting as u8),
            waits_for: Mutex::default(),
            serving: OnceLock::new(),
            viewers: Viewers::default(),
        }
    }

    /// Changes the state of the node's life.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::SeqCst);
    }

    /// The state of the node's life.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::SeqCst) {
            phase if phase == Phase::Ready as u8 => Phase::Ready,
            phase if phase == Phase::ShuttingDown as u8 => Phase::ShuttingDown,
            phase if phase == Phase::Leaving as u8 => Phase::Leaving,
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
}

impl Serving {
    /// Answers a request under `/api/v1/`. If nothing has answered in time, the failure names the shards that do
    /// not answer.
    async fn answer(&self, path: &str, request: Request<Incoming>) -> Response<Text> {
        let failure = match self.api.perform(path, request).await {
            Ok(response) => return response,
            Err(failure) => failure,
        };
        if !failure.is_silence() {
            return failure.response();
        }
        let reports = self.reports().await;
        let silent = (0..).zip(&reports).filter(|(_, report)| report.is_none());
        let silent: Vec<usize> = silent.map(|(shard, _)| shard).collect();
        failure.beside_silent(&silent).response()
    }

    /// The report of each shard; `None` for a shard that does not answer in time.
    async fn reports(&self) -> Vec<Option<ShardReport>> {
        self.ask(ReportRequest::Report).await
    }

    /// The counters of each shard's requests; `None` for a shard that does not answer in time.
    async fn probes(&self) -> Vec<Option<ShardProbe>> {
        self.ask(ReportRequest::Probe).await
    }

    async fn ask<R>(
        &self,
        request: impl Fn(oneshot::Sender<R>) -> ReportRequest,
    ) -> Vec<Option<R>> {
        let mut asked = Vec::new();
        for shard in &self.shards {
            let (reply, figures) = oneshot::channel();
            // A shard whose queue of requests is full counts as one that does not answer.
            let sent = shard.try_send(request(reply)).is_ok();
            asked.push(sent.then_some(figures));
        }
        let until = tokio::time::Instant::now() + REPORT_TIMEOUT;
        let mut answers = Vec::new();
        for figures in asked {
            let answer = match figures {
                Some(figures) => tokio::time::timeout_at(until, figures).await.ok(),
                None => None,
            };
            answers.push(answer.and_then(Result::ok));
        }
        answers
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
                    tokio::time::sleep(ACCEPT_RETRY_INTERVAL).await;
                    continue;
                }
            };
            refused = false;
            let (access, activity) = (connections.make_room().await, Activity::new());
            let serving = serve_one(stream, node.clone(), access, activity.clone());
            connections.add(access, activity, tokio::spawn(serving).abort_handle());
        }
    }
}

async fn serve_one(stream: TcpStream, node: Arc<Node>, access: Access, activity: Activity) {
    let service = service_fn(|request| {
        let (node, activity) = (node.clone(), activity.clone());
        async move {
            let answer = answer(node, access, &activity, request);
            activity.busy_with(answer).await
        }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.max_buf_size(HEAD_LEN_MAX);
    builder.keep_alive(access == Access::Any);
    let stream = TokioIo::new(Watched::new(stream, activity.clone()));
    let mut connection = builder.serve_connection(stream, service);
    let end = tokio::select! {
        // A client that disconnects early is no fault of the node.
        _ = &mut connection => return,
        end = activity.over() => end,
    };
    if end == End::Head {
        let stream = connection.into_parts().io.into_inner();
        stream.say_last(HEAD_TOO_LATE);
    }
}

async fn answer(
    node: Arc<Node>,
    access: Access,
    activity: &Activity,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    if let Some(refused) = refusal(&node, access, &request) {
        return Ok(refused.map(Either::Left));
    }
    Ok(match request.uri().path() {
        page::stream::PATH => page::stream::answer(&node, request.method(), activity),
        _ => answer_at_once(&node, request).await.map(Either::Left),
    })
}

/// The refusal of a request that the connection, the host or the origin does not allow.
fn refusal(node: &Node, access: Access, request: &Request<Incoming>) -> Option<Response<Text>> {
    let path = request.uri().path();
    if access == Access::Probe && !matches!(path, "/livez" | "/readyz") {
        return Some(text(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many connections: there is room for /livez and /readyz only\n",
        ));
    }
    // A probe may name the process as it likes: it learns nothing but that it lives.
    if path == "/livez" {
        return None;
    }
    let asked = (request.uri(), request.version());
    let (status, why) = origin::check(&node.settings.http(), asked, request.headers()).err()?;
    Some(match path.starts_with("/api/v1/") {
        true => Failure::foreign(status, why).response(),
        false => text(status, format!("{why}\n")),
    })
}

/// Answers a request whose answer has an end.
async fn answer_at_once(node: &Node, request: Request<Incoming>) -> Response<Text> {
    let path = request.uri().path();
    match path.strip_prefix("/api/v1/").map(str::to_owned) {
        Some(path) => match node.serving.get().filter(|_| node.phase().serves()) {
            Some(serving) => serving.answer(&path, request).await,
            None => Failure::not_serving().response(),
        },
        None => outside_api(node, request.method(), path).await,
    }
}

/// Answers a request for the page's files, or for a text.
async fn outside_api(node: &Node, method: &Method, path: &str) -> Response<Text> {
    let file = page::file(path);
    if file.is_none() && !TEXTS.contains(&path) {
        return text(
            StatusCode::NOT_FOUND,
            "the paths are /, /livez, /readyz, /metrics and /api/v1/\n",
        );
    }
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut refused = text(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET and HEAD can be used here\n",
        );
        refused
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    if let Some(file) = file {
        return file.response();
    }
    match (path, node.serving.get()) {
        ("/livez", _) => text(StatusCode::OK, "ok\n"),
        ("/readyz", _) => {
            let (status, why) = node.readiness().await;
            text(status, why)
        }
        (_, serving) => {
            // A node that waits for its cluster has no shards: it shows what is known of the process.
            let reports = match serving {
                Some(serving) => serving.reports().await,
                None => Vec::new(),
            };
            let scrape = Scrape::new(serving, node.phase(), &reports);
            text(StatusCode::OK, scrape.render())
        }
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Text> {
    let mut response = Response::new(Text::new(body.into()));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, plain);
    response
}
