//! How an empty node joins a cluster or bootstraps one, and how a node with a folder finds the
//! nodes of `--join`.
//!
//! An empty node that got a list of addresses asks all of them at once. A node of a cluster lets
//! the manager give it an id, once for each token. With `--bootstrap-expect N` there may be no
//! cluster yet. Then the first node of the list, the founder, listens until the N - 1 others, all
//! empty, have asked it, and bootstraps the cluster; they go on asking, and join it. So a founder
//! that has lost its folder makes no second cluster while the others belong to one.
//!
//! Each address that is asked, and each connection that the founder answers, has its own task and
//! its own time-out, so a silent one delays no other. The asking side runs on the node's control
//! thread, before there are shards. The answering side of a running node is a task of the shard
//! that accepted the connection.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rangedb_engine::cluster::{ClusterRequest, ClusterResponse};
use rangedb_engine::frame;
use rangedb_engine::types::NodeId;
use rangedb_protocol::handshake::{
    ANY_SHARD, HANDSHAKE_LEN, HANDSHAKE_REPLY_LEN, Handshake, HandshakeReply, Role, Verdict,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::compat::TokioAsyncReadCompatExt;

use super::input::{HELLO_LEN_MAX, Input};
use super::{Peers, VERSION, kind, reach, same_secret};
use crate::context::Context;
use crate::data_dir::Membership;
use crate::net::port::HELD_TIMEOUT;

/// Pause between two requests to the same address.
const ASK_INTERVAL: Duration = Duration::from_millis(200);
/// The same for a node that has a folder and only looks for the others' addresses.
const SEEK_INTERVAL: Duration = Duration::from_secs(1);
/// Time limit of one request, with its connection.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit of connecting; the addresses of one name share it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Time limit of the founder for a connection's request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Most connections that the founder keeps while they send nothing.
const ANSWERS_MAX: usize = 128;

/// The request of an empty node to join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The secret of the cluster.
    pub secret: String,
    /// A random number of this folder, in hex: the same token gets the same node id.
    pub token: String,
    /// The address under which others reach the node; empty if that is not known yet.
    #[serde(default)]
    pub address: String,
}

/// The response to a request to join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Accepted.
    Joined(Membership),
    /// Refused for a reason that does not pass by itself.
    Refused(String),
    /// Not now: ask again.
    Later(String),
}

/// What an empty node knows of its cluster from the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// The addresses of the other nodes, in the order of the list.
    pub others: Vec<String>,
    /// Whether this node bootstraps the cluster if there is none; if so, how many others must ask
    /// first.
    pub founds_with: Option<usize>,
    /// The address on which this node listens.
    pub listen: String,
}

/// Joins the cluster of the list; `None`: this node is to bootstrap it. While the node waits,
/// `waits` is called with the reasons whenever they change.
///
/// # Errors
/// The reason of a node that refuses, or the port cannot be listened on.
pub async fn enroll(
    list: &List,
    request: &Request,
    mut waits: impl FnMut(String),
) -> Result<Option<Membership>, String> {
    let (heard, mut hears) = mpsc::channel(list.others.len().max(1));
    // All tasks in here end with this function.
    let mut asking = JoinSet::new();
    for address in list.others.clone() {
        let (request, heard) = (request.clone(), heard.clone());
        asking.spawn(async move {
            loop {
                let reply = within(ASK_TIMEOUT, ask(&address, &request)).await;
                if heard.send((address.clone(), reply)).await.is_err() {
                    return;
                }
                sleep(ASK_INTERVAL).await;
            }
        });
    }
    let (met, mut meets) = mpsc::channel(ANSWERS_MAX);
    if list.founds_with.is_some() {
        let listener = listen(&list.listen).await?;
        asking.spawn(gather(listener, request.secret.clone(), met.clone()));
    }
    let mut tokens = BTreeSet::new();
    let mut reasons = BTreeMap::new();
    let outcome = loop {
        tokio::select! {
            Some((address, reply)) = hears.recv() => {
                let reason = match reply {
                    Ok(Reply::Joined(membership)) => break Ok(Some(membership)),
                    Ok(Reply::Refused(why)) => break Err(format!("{address}: {why}")),
                    Ok(Reply::Later(why)) => why,
                    Err(error) => error.to_string(),
                };
                if reasons.get(&address) != Some(&reason) {
                    reasons.insert(address, reason);
                    let all = reasons.iter().map(|(at, why)| format!("{at}: {why}"));
                    waits(all.collect::<Vec<_>>().join("; "));
                }
            }
            Some(token) = meets.recv() => {
                tokens.insert(token);
                if list.founds_with.is_some_and(|others| tokens.len() >= others) {
                    break Ok(None);
                }
            }
        }
    };
    // The node itself listens on the port later, so it must be free when this returns.
    asking.shutdown().await;
    outcome
}

/// Binds the node's port. A process that was just killed may hold it for a moment longer.
async fn listen(address: &str) -> Result<TcpListener, String> {
    let until = tokio::time::Instant::now() + HELD_TIMEOUT;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(error) if tokio::time::Instant::now() >= until => {
                return Err(format!("cannot listen on {address}: {error}"));
            }
            Err(_) => sleep(ASK_INTERVAL).await,
        }
    }
}

/// Listens as the founder while there is no cluster, and passes on the tokens of the nodes that
/// ask. If there are too many connections, the oldest one goes: a node sends its request at once.
async fn gather(listener: TcpListener, secret: String, met: mpsc::Sender<String>) {
    let mut answering = JoinSet::new();
    let mut tasks = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted; it is tried again");
                sleep(ASK_INTERVAL).await;
                continue;
            }
        };
        let (secret, met) = (secret.clone(), met.clone());
        let task = answering.spawn(async move {
            match within(ANSWER_TIMEOUT, answer(stream, &secret)).await {
                Ok(Some(token)) => drop(met.send(token).await),
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "a connection sent no request to join"),
            }
        });
        tasks.push_back(task);
        if tasks.len() > ANSWERS_MAX
            && let Some(oldest) = tasks.pop_front()
        {
            oldest.abort();
        }
        while answering.try_join_next().is_some() {}
    }
}

async fn within<T>(limit: Duration, of: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let done = timeout(limit, of).await;
    done.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")))
}

/// Answers one request to the founder; returns the token of a node that knows the secret.
async fn answer(mut stream: TcpStream, secret: &str) -> io::Result<Option<String>> {
    let mut handshake = [0; HANDSHAKE_LEN];
    stream.read_exact(&mut handshake).await?;
    let handshake = Handshake::decode(&handshake).map_err(io::Error::other)?;
    let verdict = match handshake.role {
        Role::Peer if handshake.version(VERSION..=VERSION).is_none() => Verdict::NoCommonVersion,
        Role::Peer => Verdict::Accepted,
        Role::Client => Verdict::ShuttingDown,
    };
    let answer = HandshakeReply {
        verdict,
        version: VERSION,
        shard: 0,
        shards: 0,
        node: 0,
        cluster: 0,
    };
    stream.write_all(&answer.encode()).await?;
    if verdict != Verdict::Accepted {
        return Ok(None);
    }
    let mut stream = stream.compat();
    let received = Input::new(HELLO_LEN_MAX).receive(&mut stream).await?;
    let request: Request = serde_json::from_slice(&received.body)?;
    let (reply, token) = if same_secret(&request.secret, secret) {
        let reply = Reply::Later("the cluster is being formed".to_owned());
        (reply, Some(request.token))
    } else {
        (other_secret(), None)
    };
    let mut bytes = Vec::new();
    frame::encode(0, kind::ENROLLED, &serde_json::to_vec(&reply)?, &mut bytes);
    stream.get_mut().write_all(&bytes).await?;
    Ok(token)
}

fn other_secret() -> Reply {
    Reply::Refused("the cluster's secret is another one; see --cluster-secret".to_owned())
}

/// Connects to a node as a peer, trying all addresses of the name, and returns the node's answer to
/// the handshake, too.
async fn connect(address: &str) -> io::Result<(TcpStream, HandshakeReply)> {
    let mut failure = io::Error::other("the name has no address");
    let found: Vec<SocketAddr> = lookup_host(address).await?.collect();
    let share = CONNECT_TIMEOUT / found.len().max(1) as u32;
    for found in found {
        let mut stream = match within(share, TcpStream::connect(found)).await {
            Ok(stream) => stream,
            Err(error) => {
                failure = error;
                continue;
            }
        };
        let handshake = super::handshake(ANY_SHARD);
        stream.write_all(&handshake.encode()).await?;
        let mut answer = [0; HANDSHAKE_REPLY_LEN];
        stream.read_exact(&mut answer).await?;
        let answer = HandshakeReply::decode(&answer);
        let answer = answer.ok_or_else(|| io::Error::other("it is not a RangeDB node"))?;
        return Ok((stream, answer));
    }
    Err(failure)
}

async fn ask(address: &str, request: &Request) -> io::Result<Reply> {
    let (mut stream, answer) = connect(address).await?;
    match answer.verdict {
        Verdict::Accepted => {}
        Verdict::RoleRefused | Verdict::NoCommonVersion => {
            return Ok(Reply::Refused(super::refused(&answer)));
        }
        _ => return Ok(Reply::Later(super::refused(&answer))),
    }
    let mut bytes = Vec::new();
    frame::encode(0, kind::ENROLL, &serde_json::to_vec(request)?, &mut bytes);
    stream.write_all(&bytes).await?;
    let received = Input::default().receive(&mut stream.compat()).await?;
    Ok(serde_json::from_slice(&received.body)?)
}

/// A node that answered at an address of `--join`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The address of --join at which it answered.
    pub address: String,
    /// The id of the node there.
    pub node: NodeId,
    /// The id of its cluster.
    pub cluster: u128,
}

/// The answers of the addresses of `--join` at a start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Around {
    /// The nodes that answered.
    pub found: Vec<Found>,
    /// The addresses that did not answer.
    pub silent: Vec<String>,
}

/// Asks all addresses once, all at the same time, which node is there. Leaves out addresses that do
/// not answer and nodes that belong to no cluster yet.
pub async fn look(addresses: &[String]) -> Vec<Found> {
    let asked = addresses.iter().map(|address| async move {
        let (_, answer) = within(CONNECT_TIMEOUT * 2, connect(address)).await.ok()?;
        (answer.cluster != 0).then(|| Found {
            address: address.clone(),
            node: NodeId(answer.node),
            cluster: answer.cluster,
        })
    });
    // The addresses of one name are tried in turn: twice the time limit leaves some for the answer.
    let answered = futures_util::future::join_all(asked).await;
    answered.into_iter().flatten().collect()
}

/// Asks the addresses of `--join` until each has answered once. If all nodes come back at new
/// addresses, only this list names them.
pub async fn seek(peers: Arc<Peers>, cluster: u128, mut addresses: Vec<String>) {
    while !addresses.is_empty() {
        for found in look(&addresses).await {
            addresses.retain(|address| *address != found.address);
            if found.cluster == cluster {
                peers.learn(found.node, &found.address);
            } else {
                let (address, other) = (&found.address, format!("{:032x}", found.cluster));
                tracing::error!(%address, other, "an address of --join belongs to another cluster");
            }
        }
        sleep(SEEK_INTERVAL).await;
    }
}

/// Answers an empty node that asks to join.
pub async fn grant(context: &Rc<Context>, body: &[u8]) -> Vec<u8> {
    let reply = decide(context, body).await;
    // Numbers and texts can always be encoded.
    serde_json::to_vec(&reply).unwrap_or_default()
}

async fn decide(context: &Rc<Context>, body: &[u8]) -> Reply {
    let request: Request = match serde_json::from_slice(body) {
        Ok(request) => request,
        Err(error) => return Reply::Refused(format!("the request cannot be read: {error}")),
    };
    if !same_secret(&request.secret, &context.peers.secret) {
        return other_secret();
    }
    let Ok(token) = u128::from_str_radix(&request.token, 16) else {
        return Reply::Refused("the request has no token".to_owned());
    };
    // The node itself does not listen yet, so its address is checked when it runs.
    if let Some(other) = reach::who_is_at(&request.address).await {
        return Reply::Refused(format!(
            "{} is where node {} of cluster {:032x} answers: give this node an address of its own with \
             --advertise",
            request.address, other.node, other.cluster
        ));
    }
    match context
        .gateway
        .shard()
        .manage(ClusterRequest::Join { token })
        .await
    {
        Ok(ClusterResponse::Joined(node)) => {
            let addresses = context.peers.addresses();
            let addresses = addresses.iter().map(|(id, at)| (id.0, at.clone()));
            let system = context
                .gateway
                .shard()
                .system()
                .into_iter()
                .map(|at| (at.node.0, at.shard.0));
            Reply::Joined(Membership {
                cluster: format!("{:032x}", context.node.cluster),
                node: node.0,
                addresses: addresses.collect(),
                system: system.collect(),
            })
        }
        Ok(ClusterResponse::Refused(why)) => Reply::Later(why.to_string()),
        Ok(ClusterResponse::NotHere { .. }) => Reply::Later(
            "the cluster's manager is moving to another node; this node asks again".to_owned(),
        ),
        Ok(_) => Reply::Later(
            "the cluster's manager gave an answer that is none to this request: run the same release on \
             all nodes"
                .to_owned(),
        ),
        Err(error) => Reply::Later(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(secret: &str, token: &str) -> Request {
        Request {
            secret: secret.to_owned(),
            token: token.to_owned(),
            address: String::new(),
        }
    }

    #[tokio::test]
    async fn a_founder_waits_for_all_others_and_only_those_who_know_the_secret() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let (met, mut meets) = mpsc::channel(8);
        let gathering = tokio::spawn(gather(listener, "right".to_owned(), met));
        // More connections that send nothing than the founder keeps.
        let mut silent = Vec::new();
        for _ in 0..ANSWERS_MAX + 10 {
            silent.push(TcpStream::connect(&address).await.expect("a connection"));
        }
        for (secret, token) in [("wrong", "1"), ("right", "1"), ("right", "2")] {
            let reply = ask(&address, &request(secret, token)).await;
            let reply = reply.expect("an answer");
            let is_known = secret == "right";
            assert_eq!(matches!(reply, Reply::Later(_)), is_known, "{reply:?}");
            if is_known {
                assert_eq!(meets.recv().await.as_deref(), Some(token));
            }
        }
        assert!(meets.try_recv().is_err(), "a wrong secret does not count");
        gathering.abort();
        assert_eq!(look(&["127.0.0.1:1".to_owned()]).await, []);
    }

    #[tokio::test]
    async fn a_silent_address_does_not_hold_up_the_others() {
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let founder = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = |listener: &TcpListener| listener.local_addr().expect("bound").to_string();
        let list = List {
            others: vec![address(&silent), address(&founder)],
            founds_with: None,
            listen: String::new(),
        };
        let (met, mut meets) = mpsc::channel(8);
        let gathering = tokio::spawn(gather(founder, "right".to_owned(), met));
        let (told, mut reasons) = mpsc::unbounded_channel();
        let asking = tokio::spawn(async move {
            let waits = |reason| drop(told.send(reason));
            enroll(&list, &request("right", "7"), waits).await
        });
        assert_eq!(meets.recv().await.as_deref(), Some("7"));
        let reason = reasons.recv().await.expect("a reason");
        assert!(reason.contains("the cluster is being formed"), "{reason}");
        asking.abort();
        gathering.abort();
    }
}
