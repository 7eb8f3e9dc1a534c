//! How an empty node becomes part of a cluster, or makes one.
//!
//! An empty node that was given a list asks each address in turn for its place; a node of a cluster
//! has the manager give it an id, once for each token. With `--bootstrap-expect N` there may be no
//! cluster yet: then the node that comes first in the list, the founder, listens until the N - 1
//! others, all empty, have asked it, and makes the cluster; they go on asking, and join it. So a
//! founder that has lost its folder makes no second cluster while the others belong to one.
//!
//! The asking side runs before the node has a folder, on its control thread, and blocks. On the
//! answering side it is a task of the shard that met the connection.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rangedb_engine::cluster::{Ask, Told};
use rangedb_protocol::frame;
use rangedb_protocol::preamble::{
    ANSWER_LEN, ANY_SHARD, Answer, PREAMBLE_LEN, Preamble, Role, VERSION, VERSION_MIN, Verdict,
};
use serde::{Deserialize, Serialize};

use super::input::Input;
use super::{kind, same_secret};
use crate::shard::context::Context;

/// How often the list is gone through.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// One try may take so long.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// Connecting may take so long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How often the founder looks whether somebody asks it.
const ACCEPT_EVERY: Duration = Duration::from_millis(20);

/// What an empty node asks for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The cluster's secret.
    pub secret: String,
    /// Made once for this folder, in hex.
    pub token: String,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The place.
    Joined(Place),
    /// No, for a reason that stays.
    Refused(String),
    /// Not now.
    Later(String),
}

/// A node's place in a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The cluster's id, in hex.
    pub cluster: String,
    /// The node's id.
    pub node: u64,
    /// Where the others are.
    pub addresses: BTreeMap<u64, String>,
    /// Node and shard of each replica of the system range.
    pub system: Vec<(u64, u16)>,
}

/// What an empty node was told about the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// Where the other nodes listen, in the order of the list.
    pub others: Vec<String>,
    /// Whether this node makes the cluster if there is none, and how many others it waits for.
    pub founds_with: Option<usize>,
    /// Where this node listens.
    pub listen: String,
}

/// Finds a place in the cluster of the list; `None`: this node is to make it.
///
/// # Errors
/// A node's reason to refuse, or the port cannot be listened on.
pub fn enroll(list: &List, request: &Request) -> Result<Option<Place>, String> {
    let mut gathering = match list.founds_with {
        Some(others) => Some(Gathering::new(&list.listen, others)?),
        None => None,
    };
    let mut told = false;
    loop {
        let mut failures = Vec::new();
        for address in &list.others {
            match ask(address, request) {
                Ok(Reply::Joined(place)) => return Ok(Some(place)),
                Ok(Reply::Refused(why)) => return Err(format!("{address}: {why}")),
                Ok(Reply::Later(why)) => failures.push(format!("{address}: {why}")),
                Err(error) => failures.push(format!("{address}: {error}")),
            }
        }
        if !std::mem::replace(&mut told, true) {
            let failures = failures.join("; ");
            tracing::info!(failures, "waiting for a place in the cluster");
        }
        let until = Instant::now() + ASK_EVERY;
        while Instant::now() < until {
            if let Some(gathering) = &mut gathering
                && gathering.accept(&request.secret)
            {
                return Ok(None);
            }
            std::thread::sleep(ACCEPT_EVERY);
        }
    }
}

/// The founder's port before there is a cluster, and who has asked there.
struct Gathering {
    listener: TcpListener,
    others: usize,
    tokens: BTreeSet<String>,
}

impl Gathering {
    fn new(listen: &str, others: usize) -> Result<Gathering, String> {
        let failed = |error| format!("cannot listen on {listen}: {error}");
        let listener = TcpListener::bind(listen).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Gathering {
            listener,
            others,
            tokens: BTreeSet::new(),
        })
    }

    /// Answers whoever asks; `true` when all others have.
    fn accept(&mut self, secret: &str) -> bool {
        while let Ok((stream, _)) = self.listener.accept() {
            match self.answer(stream, secret) {
                Ok(Some(token)) => drop(self.tokens.insert(token)),
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "somebody asked in vain"),
            }
        }
        self.tokens.len() >= self.others
    }

    fn answer(&self, mut stream: TcpStream, secret: &str) -> io::Result<Option<String>> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(CONNECT_TIMEOUT))?;
        stream.set_write_timeout(Some(CONNECT_TIMEOUT))?;
        let mut preamble = [0; PREAMBLE_LEN];
        stream.read_exact(&mut preamble)?;
        let preamble = Preamble::decode(&preamble).map_err(io::Error::other)?;
        let verdict = match preamble.role {
            Role::Peer => Verdict::Accepted,
            Role::Client => Verdict::ShuttingDown,
        };
        let answer = Answer {
            verdict,
            version: VERSION,
            shard: 0,
            shards: 0,
            node: 0,
            cluster: 0,
        };
        stream.write_all(&answer.encode())?;
        if verdict != Verdict::Accepted {
            return Ok(None);
        }
        let received = Input::default().receive_blocking(&mut stream)?;
        let request: Request = serde_json::from_slice(&received.body)?;
        let (reply, token) = if same_secret(&request.secret, secret) {
            let reply = Reply::Later("the cluster is being formed".to_owned());
            (reply, Some(request.token))
        } else {
            (other_secret(), None)
        };
        let mut bytes = Vec::new();
        frame::encode(0, kind::ENROLLED, &serde_json::to_vec(&reply)?, &mut bytes);
        stream.write_all(&bytes)?;
        Ok(token)
    }
}

fn other_secret() -> Reply {
    Reply::Refused("the cluster's secret is another one; see --cluster-secret".to_owned())
}

/// Connects to a node as a peer; gives what it says of itself, too.
fn greet(address: &str, timeout: Duration) -> io::Result<(TcpStream, Answer)> {
    let found = address.to_socket_addrs()?.next();
    let found = found.ok_or_else(|| io::Error::other("the name has no address"))?;
    let mut stream = TcpStream::connect_timeout(&found, CONNECT_TIMEOUT)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let preamble = Preamble {
        version_min: VERSION_MIN,
        version_max: VERSION,
        role: Role::Peer,
        smart: false,
        tls: false,
        shard: ANY_SHARD,
    };
    stream.write_all(&preamble.encode())?;
    let mut answer = [0; ANSWER_LEN];
    stream.read_exact(&mut answer)?;
    let answer = Answer::decode(&answer);
    Ok((
        stream,
        answer.ok_or_else(|| io::Error::other("it is no RangeDB node"))?,
    ))
}

/// The id of the cluster that a node belongs to; `None`: it cannot be learnt now.
pub fn cluster_of(address: &str) -> Option<u128> {
    let (_, answer) = greet(address, CONNECT_TIMEOUT).ok()?;
    (answer.cluster != 0).then_some(answer.cluster)
}

fn ask(address: &str, request: &Request) -> io::Result<Reply> {
    let (mut stream, answer) = greet(address, ASK_TIMEOUT)?;
    match answer.verdict {
        Verdict::Accepted => {}
        Verdict::RoleRefused => {
            let why = "the node was started without --cluster-secret and takes no others";
            return Ok(Reply::Refused(why.to_owned()));
        }
        verdict => return Ok(Reply::Later(format!("refused: {verdict:?}"))),
    }
    let mut bytes = Vec::new();
    frame::encode(0, kind::ENROLL, &serde_json::to_vec(request)?, &mut bytes);
    stream.write_all(&bytes)?;
    let received = Input::default().receive_blocking(&mut stream)?;
    Ok(serde_json::from_slice(&received.body)?)
}

/// Answers a node that asks for its place.
pub async fn grant(context: &Rc<Context>, body: &[u8]) -> Vec<u8> {
    let reply = decide(context, body).await;
    // Numbers and texts can always be written.
    serde_json::to_vec(&reply).unwrap_or_default()
}

async fn decide(context: &Rc<Context>, body: &[u8]) -> Reply {
    let request: Request = match serde_json::from_slice(body) {
        Ok(request) => request,
        Err(error) => return Reply::Refused(format!("the request is none: {error}")),
    };
    if !same_secret(&request.secret, &context.peers.secret) {
        return other_secret();
    }
    let Ok(token) = u128::from_str_radix(&request.token, 16) else {
        return Reply::Refused("the request has no token".to_owned());
    };
    match context.shard.manage(Ask::Join { token }).await {
        Ok(Told::Joined(node)) => {
            let addresses = context.peers.addresses();
            let addresses = addresses.iter().map(|(id, at)| (id.0, at.clone()));
            let system = context
                .shard
                .system()
                .into_iter()
                .map(|at| (at.node.0, at.shard.0));
            Reply::Joined(Place {
                cluster: format!("{:032x}", context.node.cluster),
                node: node.0,
                addresses: addresses.collect(),
                system: system.collect(),
            })
        }
        Ok(other) => Reply::Later(format!("{other:?}")),
        Err(error) => Reply::Later(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_founder_waits_for_all_others_and_only_those_who_know_the_secret() {
        let mut gathering = Gathering::new("127.0.0.1:0", 2).expect("a port");
        let address = gathering.listener.local_addr().expect("bound").to_string();
        let asking = |secret: &str, token: &str| {
            let request = Request {
                secret: secret.to_owned(),
                token: token.to_owned(),
            };
            let address = address.clone();
            std::thread::spawn(move || ask(&address, &request).expect("an answer"))
        };
        for (secret, token, is_known, are_all) in [
            ("wrong", "1", false, false),
            ("right", "1", true, false),
            ("right", "1", true, false),
            ("right", "2", true, true),
        ] {
            let asked = asking(secret, token);
            let mut all = false;
            while !asked.is_finished() {
                all |= gathering.accept("right");
                std::thread::yield_now();
            }
            let reply = asked.join().expect("it ends");
            assert_eq!(matches!(reply, Reply::Later(_)), is_known, "{reply:?}");
            assert_eq!(all, are_all, "{token}");
        }
        assert_eq!(cluster_of("127.0.0.1:1"), None);
    }
}
