//! Forming a cluster: a node that is none yet asks the founder for its place.
//!
//! Runs before the asking node has a folder, on its control thread; on the founder's side on the
//! shard that met the connection, with the write of `node.json` on a blocking thread. Each number
//! is granted once, and again only to who asks with the same token: so a founder's answer may be
//! lost, but a folder may not.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use rangedb_protocol::frame;
use rangedb_protocol::preamble::{
    ANSWER_LEN, ANY_SHARD, Answer, Preamble, Role, VERSION, VERSION_MIN, Verdict,
};
use serde::{Deserialize, Serialize};

use super::{Peers, kind, same_secret};
use crate::env::data_dir;

/// How often the founder is asked.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// One try may take so long.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// What a node asks for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The cluster's secret.
    pub secret: String,
    /// The node's number.
    pub node: u64,
    /// Made once for this folder.
    pub token: String,
    /// Its shards.
    pub shards: u16,
    /// Borders of the ranges, in hex.
    pub split_at: Vec<String>,
    /// The list of addresses, sorted.
    pub nodes: Vec<String>,
}

/// The founder's answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Granted {
    /// The cluster's id, in hex, or why not.
    result: Result<String, String>,
}

/// Asks the founder at `address` until it grants or refuses; gives the cluster's id.
///
/// # Errors
/// Its reason.
pub fn ask(address: &str, request: &Request) -> Result<String, String> {
    let mut told = false;
    loop {
        match try_ask(address, request) {
            Ok(Granted { result }) => return result,
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::info!(%address, %error, "waiting for the founder of the cluster");
                }
            }
        }
        std::thread::sleep(ASK_EVERY);
    }
}

fn try_ask(address: &str, request: &Request) -> io::Result<Granted> {
    let found = address.to_socket_addrs()?.next();
    let found = found.ok_or_else(|| io::Error::other("the name has no address"))?;
    let mut stream = TcpStream::connect_timeout(&found, ASK_TIMEOUT)?;
    stream.set_read_timeout(Some(ASK_TIMEOUT))?;
    stream.set_write_timeout(Some(ASK_TIMEOUT))?;
    let preamble = Preamble {
        version_min: VERSION_MIN,
        version_max: VERSION,
        role: Role::Peer,
        smart: false,
        tls: false,
        shard: ANY_SHARD,
    };
    let mut bytes = preamble.encode().to_vec();
    frame::encode(0, kind::ENROLL, &serde_json::to_vec(request)?, &mut bytes);
    stream.write_all(&bytes)?;
    let mut answer = [0; ANSWER_LEN];
    stream.read_exact(&mut answer)?;
    let verdict = Answer::decode(&answer).map(|answer| answer.verdict);
    if verdict != Some(Verdict::Accepted) {
        return Err(io::Error::other(format!("refused: {verdict:?}")));
    }
    let mut received = Vec::new();
    loop {
        if let Some(found) = frame::decode(&received).map_err(io::Error::other)? {
            return Ok(serde_json::from_slice(found.body)?);
        }
        let mut piece = [0; 4096];
        match stream.read(&mut piece)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            len => received.extend_from_slice(&piece[..len]),
        }
    }
}

/// Answers a node that asks; what is granted is durable before the answer.
pub async fn grant(peers: Arc<Peers>, body: bytes::Bytes) -> Vec<u8> {
    let result = glommio::executor()
        .spawn_blocking(move || decide(&peers, &body))
        .await;
    // A structure of two texts can always be written.
    serde_json::to_vec(&Granted { result }).unwrap_or_default()
}

fn decide(peers: &Peers, body: &[u8]) -> Result<String, String> {
    let request: Request =
        serde_json::from_slice(body).map_err(|error| format!("the request is none: {error}"))?;
    if !same_secret(&request.secret, &peers.secret) {
        return Err("the cluster's secret is another one; see --cluster-secret".to_owned());
    }
    let mut held = peers
        .identity
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let (folder, identity) = &mut *held;
    let nodes: Vec<&String> = identity.nodes.iter().collect();
    if nodes != request.nodes.iter().collect::<Vec<_>>() {
        return Err(format!(
            "the founder was started with other nodes: {}",
            identity.nodes.join(",")
        ));
    }
    if identity.shards != request.shards || identity.split_at != request.split_at {
        return Err(format!(
            "the founder has --shards {} and other --split-at or shards than this node",
            identity.shards
        ));
    }
    if let Some(token) = identity.enrolled.get(&request.node) {
        if *token == request.token {
            return Ok(identity.cluster.clone());
        }
        return Err(format!(
            "node {} was part of this cluster and has lost its folder: it may not come back under \
             its number",
            request.node
        ));
    }
    let mut new = identity.clone();
    new.enrolled.insert(request.node, request.token);
    data_dir::write_identity(folder, &new).map_err(|error| error.to_string())?;
    *identity = new;
    Ok(identity.cluster.clone())
}
