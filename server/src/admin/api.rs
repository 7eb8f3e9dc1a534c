//! `/api/v1/`: the cluster and its keys over HTTP, for scripts and pages.
//!
//! Every request except those for histories goes through the client library, which connects to
//! this node's own port ([`own_client`](super::own_client)). So the rules for clients hold here, too. Answers
//! about the cluster have the JSON of the wire protocol's admin commands; the value of a key is the raw body.
//! Runs on the control thread.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use rangedb_client::admin::{Admin, Node, NodeHistory};
use rangedb_client::{BatchOutcome, Client, Error};
use rangedb_protocol::admin::{
    self, Balance, ClusterStatus, Done, HotRanges, Merged, Nodes, Range, Ranges, Scattered,
    SettingRefused, Settings as ClusterSettings, Started,
};
use rangedb_protocol::limits::{
    ADMIN_COMMAND_LEN_MAX, BATCH_LEN_MAX, MULTI_GET_KEYS_LEN_MAX, VALUE_LEN_MAX,
};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::batch;
use super::body::{NoBody, Text, json_response, percent_decoded, read};
use super::cluster_history::{ClusterHistory, Past};
use super::failure::Failure;
use super::history;
use super::json::{self, of_state};
use super::multi_get;
use super::orders::{
    DecommissionNode, MoveReplica, NoFields, ScatterRanges, SplitRange, TransferLeader, fields,
    fields_or_none,
};
use super::own_client::OwnClient;
use super::scan::{Scan, parameters};
use crate::history::{History, Query};
use crate::node_settings::Settings;

/// The header that carries a value's version.
const VERSION: HeaderName = HeaderName::from_static("rangedb-version");
/// The longest body of an order. The admin command is longer than the body, as it adds what the path
/// says.
const BODY_LEN_MAX: usize = ADMIN_COMMAND_LEN_MAX / 2;
/// The longest body of an order to split a range.
const SPLIT_BODY_LEN_MAX: usize = ADMIN_COMMAND_LEN_MAX;
/// How long such an order may take: many keys take a while.
const SPLIT_TIMEOUT: Duration = Duration::from_mins(1);
/// A batch in JSON, where hexadecimal digits take two characters for a byte.
const BATCH_BODY_LEN_MAX: usize = 3 * BATCH_LEN_MAX;
/// Keys in JSON, as above.
const MULTI_GET_BODY_LEN_MAX: usize = 3 * MULTI_GET_KEYS_LEN_MAX;

/// How long the history's thread may take for an answer. A disk that hangs holds it up.
const HISTORY_TIMEOUT: Duration = Duration::from_secs(5);

/// So many histories of all nodes are summed up at once: their histograms take memory.
const SUMS_MAX: usize = 2;

/// The API: HTTP in front of a client of the database.
pub struct Api {
    history: History,
    settings: Arc<Settings>,
    client: OwnClient,
    /// Permits to sum up the histories of all nodes.
    sums: Semaphore,
}

/// The thing that a path names.
#[derive(Debug, PartialEq, Eq)]
enum Resource {
    Nodes,
    Ranges,
    HotRanges,
    Status,
    Config,
    ConfigHistory,
    History,
    HistoryOfAll,
    Setting(String),
    TransferLeader(u64),
    MoveReplica(u64),
    SplitRange(u64),
    MergeRange(u64),
    ReleaseRange(u64),
    ScatterRanges,
    Balance,
    DrainNode(u64),
    UndrainNode(u64),
    DecommissionNode(u64),
    RemoveNode(u64),
    NodeLeaving(u64),
    NodeConfig,
    Reload,
    Batch,
    MultiGet,
    Key(Vec<u8>),
    Scan,
}

impl Resource {
    /// Parses a path under `/api/v1/`.
    fn of(path: &str) -> Result<Resource, Failure> {
        let decoded = |part: &str| {
            percent_decoded(part).ok_or_else(|| {
                Failure::invalid("a percent sign in the path has no two hexadecimal digits")
            })
        };
        if let Some(key) = path.strip_prefix("kv/") {
            return Ok(Resource::Key(decoded(key)?));
        }
        let id = |id: &str| {
            let is_no_id = |_| Failure::invalid("the id of a range or node is a whole number");
            id.parse::<u64>().map_err(is_no_id)
        };
        let parts: Vec<&str> = path.split('/').collect();
        Ok(match parts.as_slice() {
            ["batch"] => Resource::Batch,
            ["get"] => Resource::MultiGet,
            ["nodes"] => Resource::Nodes,
            ["ranges"] => Resource::Ranges,
            ["ranges", "hot"] => Resource::HotRanges,
            ["status"] => Resource::Status,
            ["scan"] => Resource::Scan,
            ["history"] => Resource::History,
            ["history", "all"] => Resource::HistoryOfAll,
            ["config"] => Resource::Config,
            ["config", "history"] => Resource::ConfigHistory,
            ["node-config"] => Resource::NodeConfig,
            ["reload"] => Resource::Reload,
            ["config", name] => {
                let name = String::from_utf8(decoded(name)?);
                Resource::Setting(name.map_err(|_| Failure::invalid("a setting's name is UTF-8"))?)
            }
            ["ranges", range, "transfer-leader"] => Resource::TransferLeader(id(range)?),
            ["ranges", range, "move-replica"] => Resource::MoveReplica(id(range)?),
            ["ranges", range, "split"] => Resource::SplitRange(id(range)?),
            ["ranges", range, "merge"] => Resource::MergeRange(id(range)?),
            ["ranges", "scatter"] => Resource::ScatterRanges,
            ["balance"] => Resource::Balance,
            ["ranges", range, "release"] => Resource::ReleaseRange(id(range)?),
            ["nodes", node, "drain"] => Resource::DrainNode(id(node)?),
            ["nodes", node, "undrain"] => Resource::UndrainNode(id(node)?),
            ["nodes", node, "decommission"] => Resource::DecommissionNode(id(node)?),
            ["nodes", node, "remove"] => Resource::RemoveNode(id(node)?),
            ["nodes", node, "leaving"] => Resource::NodeLeaving(id(node)?),
            _ => return Err(Failure::no_such_page()),
        })
    }

    /// The methods that the resource supports.
    fn methods(&self) -> &'static str {
        match self {
            Resource::Key(_) => "GET, HEAD, PUT, DELETE",
            Resource::Setting(_) => "GET, HEAD, PUT",
            Resource::Batch
            | Resource::MultiGet
            | Resource::TransferLeader(_)
            | Resource::MoveReplica(_)
            | Resource::SplitRange(_)
            | Resource::MergeRange(_)
            | Resource::ReleaseRange(_)
            | Resource::ScatterRanges
            | Resource::DrainNode(_)
            | Resource::UndrainNode(_)
            | Resource::DecommissionNode(_)
            | Resource::RemoveNode(_)
            | Resource::Reload => "POST",
            _ => "GET, HEAD",
        }
    }
}

impl Api {
    /// The API of the node that listens at `listen` and has this history and these settings.
    pub fn new(listen: SocketAddr, history: History, settings: Arc<Settings>) -> Api {
        Api {
            client: OwnClient::new(listen, settings.clone()),
            history,
            settings,
            sums: Semaphore::new(SUMS_MAX),
        }
    }

    /// The state of the cluster, and all its ranges, as its manager knows them now.
    ///
    /// # Errors
    /// The manager does not answer.
    pub(super) async fn cluster(&self) -> Result<(ClusterStatus, Vec<Range>), Error> {
        let ask = |client: Client| async move {
            let admin = client.admin();
            let status = admin.status().await?;
            Ok::<_, Error>((status, admin.ranges().await?))
        };
        self.client.read(ask).await
    }

    /// Answers a request for `path` under `/api/v1/`.
    ///
    /// # Errors
    /// The request is refused, or nothing has answered it.
    pub(super) async fn perform(
        &self,
        path: &str,
        request: Request<Incoming>,
    ) -> Result<Response<Text>, Failure> {
        let resource = Resource::of(path)?;
        let query = request.uri().query();
        // A question mark that was meant as part of a key must not end the key unnoticed.
        let takes_query = matches!(
            resource,
            Resource::Scan | Resource::History | Resource::HistoryOfAll | Resource::HotRanges
        );
        if query.is_some() && !takes_query {
            return Err(Failure::invalid(
                "this path takes no query; write a question mark in a key as %3F",
            ));
        }
        let method = request.method().clone();
        let methods = resource.methods();
        if !methods.split(", ").any(|known| known == method.as_str()) {
            return Err(Failure::method(methods));
        }
        match resource {
            Resource::Key(key) => return self.key(&method, &key, request.into_body()).await,
            Resource::Scan => {
                let scan = Scan::of(query.unwrap_or_default())?;
                let page = self.client.read(|client| scan.read(client)).await?;
                return Ok(scan.answer(page));
            }
            Resource::HotRanges => return self.hot_ranges(query.unwrap_or_default()).await,
            Resource::History => return self.past(query.unwrap_or_default()).await,
            Resource::HistoryOfAll => return self.past_of_all(query.unwrap_or_default()).await,
            Resource::Batch => return self.batch(request.into_body()).await,
            Resource::MultiGet => return self.multi_get(request.into_body()).await,
            Resource::SplitRange(range) => return self.split(range, request.into_body()).await,
            Resource::MergeRange(range) => return self.merge(range, request.into_body()).await,
            Resource::NodeConfig => return answer(self.settings.shown()),
            Resource::Reload => return self.reload(request.into_body()).await,
            _ => {}
        }
        let answer = if matches!(method, Method::GET | Method::HEAD) {
            let shown = self.client.read(|client| show(client, &resource)).await?;
            shown.ok_or_else(Failure::no_such_page)?
        } else {
            let body = whole_body(request.into_body(), BODY_LEN_MAX).await?;
            order(&self.client.get().await?.admin(), resource, &body).await?
        };
        Ok(json_response(StatusCode::OK, answer.to_string()))
    }

    /// Shows the ranges with most CPU time, and their hottest keys.
    async fn hot_ranges(&self, query: &str) -> Result<Response<Text>, Failure> {
        let top = match parameters(query, &["top"])?.remove("top") {
            None => admin::HOT_RANGES_DEFAULT,
            Some(text) => {
                let number = std::str::from_utf8(&text).ok();
                let no_number = || Failure::invalid("top is a number of ranges");
                let number = number.and_then(|text| text.parse().ok());
                number.ok_or_else(no_number)?
            }
        };
        let ask = |client: Client| async move { client.admin().hot_ranges(top).await };
        let ranges = self.client.read(ask).await?;
        let answer = of_state(HotRanges { ranges })?;
        Ok(json_response(StatusCode::OK, answer.to_string()))
    }

    /// Tells a part of this node's history.
    async fn past(&self, query: &str) -> Result<Response<Text>, Failure> {
        let told = self.own_past(history::query(query)?).await;
        answer(told.map_err(Failure::unavailable)?)
    }

    /// A part of this node's history, or why it cannot be told.
    async fn own_past(&self, query: Query) -> Result<NodeHistory, String> {
        let told = tokio::time::timeout(HISTORY_TIMEOUT, self.history.ask(query)).await;
        told.unwrap_or_else(|_| Err("the history does not answer".to_owned()))
    }

    /// Tells a part of the history of all nodes, summed up.
    async fn past_of_all(&self, query: &str) -> Result<Response<Text>, Failure> {
        let query = history::query(query)?;
        let past = Past::between((query.from_ms, query.to_ms), query.step);
        let times = (Some(past.from_ms), Some(past.to_ms));
        // It is never closed.
        let _permit = self.sums.acquire().await;
        let nodes = self
            .client
            .read(|client| async move { client.admin().nodes().await });
        let nodes = match nodes.await {
            Ok(nodes) => nodes,
            Err(why) => {
                let own = self.own_past(Query::of(times, past.step, false)).await;
                let own = own.map_err(Failure::unavailable)?;
                return answer(ClusterHistory::of_one(own, why.to_string()));
            }
        };
        let own = &self.own_past(Query::of(times, past.step, true)).await;
        let all = ClusterHistory::of_all(&nodes, past.step, |node| async move {
            match own {
                Ok(own) if own.node == node.id => Ok(own.clone()),
                _ => self.past_of(node, past).await.map_err(|why| why.message),
            }
        });
        let all = all.await.told();
        answer(all.map_err(Failure::unavailable)?)
    }

    /// A part of the history of another node, with histograms.
    async fn past_of(&self, node: &Node, past: Past) -> Result<NodeHistory, Error> {
        let other = self.client.of_other(&node.address).await?;
        past.ask(&other.admin(), node.id).await
    }

    /// Writes a batch. If a condition fails, the status is 409 and the body names the condition.
    async fn batch(&self, body: Incoming) -> Result<Response<Text>, Failure> {
        let body = whole_body(body, BATCH_BODY_LEN_MAX).await?;
        let batch = batch::of_body(&body).map_err(Failure::invalid)?;
        let outcome = self.client.get().await?.batch(&batch).await?;
        let answer = batch::outcome(&outcome).to_string();
        Ok(match outcome {
            BatchOutcome::Written { version, .. } => {
                versioned(json_response(StatusCode::OK, answer), version)
            }
            _ => json_response(StatusCode::CONFLICT, answer),
        })
    }

    /// Reads several keys. The body has a result for each key, which may be an error.
    async fn multi_get(&self, body: Incoming) -> Result<Response<Text>, Failure> {
        let body = whole_body(body, MULTI_GET_BODY_LEN_MAX).await?;
        let keys = multi_get::of_body(&body).map_err(Failure::invalid)?;
        Ok(multi_get::answer(&self.client.get().await?, &keys).await)
    }

    /// Splits a range. If it was split at some of the keys only, the status is 409 and the body says why.
    async fn split(&self, range: u64, body: Incoming) -> Result<Response<Text>, Failure> {
        let body = whole_body(body, SPLIT_BODY_LEN_MAX).await?;
        let split: SplitRange = fields(&body)?;
        let (keys, hold) = (split.keys()?, split.hold_ms.map(Duration::from_millis));
        let admin = self.client.get().await?.with_timeout(SPLIT_TIMEOUT).admin();
        let answer = match split.into {
            None => admin.split_range(range, &keys, hold).await?,
            Some(parts) if keys.is_empty() => admin.split_range_into(range, parts, hold).await?,
            Some(_) => {
                let why =
                    "a range is split at keys or into parts: leave into out, or at and at_hex";
                return Err(Failure::invalid(why));
            }
        };
        let status = match &answer.failed {
            None => StatusCode::OK,
            Some(failed) if failed.unknown => StatusCode::GATEWAY_TIMEOUT,
            Some(_) => StatusCode::CONFLICT,
        };
        Ok(json_response(status, of_state(answer)?.to_string()))
    }

    /// Merges a range with its right neighbour.
    async fn merge(&self, range: u64, body: Incoming) -> Result<Response<Text>, Failure> {
        let body = whole_body(body, BODY_LEN_MAX).await?;
        let NoFields {} = fields_or_none(&body)?;
        let admin = self.client.get().await?.with_timeout(SPLIT_TIMEOUT).admin();
        admin.merge_range(range).await?;
        answer(Merged { range })
    }

    /// Has the node read its settings again. It is an error if one was refused, since then none was taken
    /// over.
    async fn reload(&self, body: Incoming) -> Result<Response<Text>, Failure> {
        let body = whole_body(body, BODY_LEN_MAX).await?;
        let NoFields {} = fields_or_none(&body)?;
        let reloaded = self.settings.reload_apart().await;
        let no_thread = |_| {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            Failure::new(status, "internal", "there is no thread for a reload")
        };
        let reloaded = reloaded.map_err(no_thread)?;
        match reloaded.refused.first() {
            None => answer(reloaded),
            Some(SettingRefused { name, reason, .. }) => {
                let name = name.as_deref().unwrap_or("the settings file");
                let message = format!("no setting was taken over: {name}: {reason}");
                Err(Failure::invalid(message))
            }
        }
    }

    async fn key(
        &self,
        method: &Method,
        key: &[u8],
        body: Incoming,
    ) -> Result<Response<Text>, Failure> {
        if *method == Method::PUT {
            let value = whole_body(body, VALUE_LEN_MAX).await?;
            let version = self.client.get().await?.put(key, value).await?;
            let answer = json!({ "version": json::version(version) }).to_string();
            return Ok(versioned(json_response(StatusCode::OK, answer), version));
        }
        if *method == Method::DELETE {
            let deleted = self.client.get().await?.delete(key).await?;
            let version = json::version(deleted.version);
            let answer = json!({ "version": version, "existed": deleted.existed });
            let response = json_response(StatusCode::OK, answer.to_string());
            return Ok(versioned(response, deleted.version));
        }
        let ask = |client: Client| async move { client.get(key).await };
        let found = self.client.read(ask).await?;
        let found = found.ok_or_else(Failure::no_such_key)?;
        let mut response = Response::new(Text::new(found.value));
        let raw = HeaderValue::from_static("application/octet-stream");
        response.headers_mut().insert(CONTENT_TYPE, raw);
        Ok(versioned(response, found.version))
    }
}

/// The part of the cluster's state that a resource is; `None` if it is none.
async fn show(client: Client, resource: &Resource) -> Result<Option<Value>, Error> {
    let admin = client.admin();
    let shown = match resource {
        Resource::Nodes => of_state(Nodes {
            nodes: admin.nodes().await?,
        }),
        Resource::Ranges => of_state(Ranges {
            ranges: admin.ranges().await?,
        }),
        Resource::Status => of_state(admin.status().await?),
        Resource::Config => of_state(ClusterSettings {
            settings: admin.config().await?,
        }),
        Resource::ConfigHistory => of_state(admin::History {
            history: admin.config_history().await?,
        }),
        Resource::Setting(name) => of_state(admin.config_get(name).await?),
        Resource::NodeLeaving(node) => of_state(admin.leaving(*node).await?),
        Resource::Balance => of_state(Balance {
            decisions: admin.decisions().await?,
        }),
        _ => return Ok(None),
    };
    shown.map(Some)
}

/// Gives the order that a resource and its body are, and gives the answer.
async fn order(admin: &Admin, resource: Resource, body: &[u8]) -> Result<Value, Failure> {
    match resource {
        Resource::Setting(name) => {
            let value = std::str::from_utf8(body);
            let value = value.map_err(|_| Failure::invalid("a setting's value is UTF-8"))?;
            admin.config_set(&name, value).await?;
        }
        Resource::TransferLeader(range) => {
            let TransferLeader { to } = fields_or_none(body)?;
            admin.transfer_leader(range, to).await?;
            return begun();
        }
        Resource::MoveReplica(range) => {
            let MoveReplica {
                from,
                to_node,
                to_shard,
            } = fields(body)?;
            admin.move_replica(range, from, to_node, to_shard).await?;
            return begun();
        }
        Resource::ReleaseRange(range) => {
            let NoFields {} = fields_or_none(body)?;
            admin.release_range(range).await?;
        }
        Resource::ScatterRanges => {
            let (start, end) = fields_or_none::<ScatterRanges>(body)?.interval()?;
            let orders = admin.scatter_ranges(&start, end.as_deref()).await?;
            return Ok(of_state(Scattered { orders })?);
        }
        Resource::DecommissionNode(node) => {
            let DecommissionNode { dry_run } = fields_or_none(body)?;
            if dry_run {
                return Ok(of_state(admin.decommission_dry_run(node).await?)?);
            }
            admin.decommission_node(node).await?;
            return begun();
        }
        Resource::DrainNode(node) => {
            let NoFields {} = fields_or_none(body)?;
            admin.drain_node(node).await?;
            return begun();
        }
        Resource::UndrainNode(node) => {
            let NoFields {} = fields_or_none(body)?;
            admin.undrain_node(node).await?;
        }
        Resource::RemoveNode(node) => {
            let NoFields {} = fields_or_none(body)?;
            admin.remove_node(node).await?;
        }
        _ => return Err(Failure::no_such_page()),
    }
    Ok(of_state(Done { done: true })?)
}

/// The answer to an order that goes on after it was taken.
fn begun() -> Result<Value, Failure> {
    let (started, done) = (true, false);
    Ok(of_state(Started { started, done })?)
}

/// An answer of the API.
fn answer(facts: impl Serialize) -> Result<Response<Text>, Failure> {
    Ok(json_response(StatusCode::OK, of_state(facts)?.to_string()))
}

async fn whole_body(body: Incoming, len_max: usize) -> Result<Vec<u8>, Failure> {
    read(body, len_max).await.map_err(|no_body| match no_body {
        NoBody::TooLong => Failure::too_long(len_max),
        NoBody::Broken => Failure::invalid("the body did not arrive"),
        NoBody::Late => Failure::too_late(),
    })
}

fn versioned(mut response: Response<Text>, version: u64) -> Response<Text> {
    response
        .headers_mut()
        .insert(VERSION, HeaderValue::from(version));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(path: &str) -> Option<Resource> {
        Resource::of(path).ok()
    }

    #[test]
    fn paths_name_what_they_are_for() {
        assert_eq!(resource("nodes"), Some(Resource::Nodes));
        assert_eq!(resource("get"), Some(Resource::MultiGet));
        assert_eq!(resource("history"), Some(Resource::History));
        assert_eq!(resource("history/all"), Some(Resource::HistoryOfAll));
        assert_eq!(resource("config/history"), Some(Resource::ConfigHistory));
        assert_eq!(resource("node-config"), Some(Resource::NodeConfig));
        assert_eq!(resource("reload"), Some(Resource::Reload));
        assert_eq!(
            resource("config/dead-after"),
            Some(Resource::Setting("dead-after".to_owned()))
        );
        assert_eq!(
            resource("ranges/7/transfer-leader"),
            Some(Resource::TransferLeader(7))
        );
        assert_eq!(
            resource("ranges/7/move-replica"),
            Some(Resource::MoveReplica(7))
        );
        assert_eq!(resource("ranges/hot"), Some(Resource::HotRanges));
        assert_eq!(resource("ranges/7/split"), Some(Resource::SplitRange(7)));
        assert_eq!(
            resource("ranges/7/release"),
            Some(Resource::ReleaseRange(7))
        );
        assert_eq!(resource("ranges/scatter"), Some(Resource::ScatterRanges));
        assert_eq!(resource("balance"), Some(Resource::Balance));
        assert_eq!(resource("nodes/3/drain"), Some(Resource::DrainNode(3)));
        assert_eq!(resource("nodes/3/leaving"), Some(Resource::NodeLeaving(3)));
        let key = resource("kv/a%2Fb/%00?");
        assert_eq!(key, Some(Resource::Key(b"a/b/\0?".to_vec())));
        for bad in [
            "",
            "node",
            "nodes/",
            "nodes/3",
            "nodes/x/drain",
            "nodes/-3/remove",
            "kv",
            "ranges/x/move-replica",
            "ranges/7",
            "ranges/x/split",
            "config/%ff",
            "config/a/b",
            "kv/%zz",
        ] {
            assert_eq!(resource(bad), None, "{bad}");
        }
    }
}
