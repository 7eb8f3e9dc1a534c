//! The real client as a [`Database`]. The only module that uses the client library.

use std::borrow::Cow;
use std::sync::OnceLock;
use std::time::Instant;

pub use rangedb_client::flags::TlsArgs;
use rangedb_client::{CasOutcome, Client, ClientOptions, Fate};
pub use rangedb_client::{ClusterId, TlsOptions};

use crate::database::{Condition, Database, Failure, Found};
use crate::driver::Measured;
use crate::probe::Probe;
use crate::workload::OperationKind;

/// A client with its own connections.
#[derive(Clone)]
pub struct ClientDatabase {
    client: Client,
}

impl ClientDatabase {
    /// Connects to one of the addresses that answers. All clients of a run belong to one cluster:
    /// the given one, or that of the first client.
    pub async fn connect(
        addresses: &[String],
        cluster: &OnceLock<ClusterId>,
        tls: Option<TlsOptions>,
    ) -> Result<ClientDatabase, String> {
        let options = ClientOptions::new(addresses)
            .cluster(cluster.get().copied())
            .tls(tls);
        let client = Client::connect(options)
            .await
            .map_err(|error| error.to_string())?;
        if let Some(met) = client.cluster() {
            let first = *cluster.get_or_init(|| met);
            // Two clients may meet their first nodes at the same time.
            if first != met {
                return Err(format!(
                    "the addresses belong to two clusters, {first} and {met}: give --cluster, or \
                     addresses of one"
                ));
            }
        }
        Ok(ClientDatabase { client })
    }

    /// Reads every row of the database once, in key order. Each row counts as an operation; the
    /// latencies are those of the pages. Gives the bytes of all keys and values, too.
    pub async fn scan_everything(&self) -> Result<(Measured, u64), String> {
        let (mut probe, mut bytes) = (Probe::default(), 0);
        let began = Instant::now();
        let mut asked = began;
        let mut read = self.client.scan(..).page().await;
        loop {
            let page = read.map_err(|error| error.to_string())?;
            let now = Instant::now();
            probe.record(OperationKind::Scan, now - asked);
            probe.operations += page.rows.len() as u64;
            let lens = page.rows.iter().map(|row| row.key.len() + row.value.len());
            bytes += lens.sum::<usize>() as u64;
            let Some(continuation) = page.continuation else {
                break;
            };
            asked = now;
            read = self.client.scan_next(continuation).await;
        }
        let seconds = began.elapsed().as_secs_f64();
        Ok((Measured::whole(probe, seconds), bytes))
    }
}

#[cold]
fn failure(error: rangedb_client::Error) -> Failure {
    Failure {
        code: Cow::Borrowed(error.code.name()),
        is_not_applied: error.fate == Fate::NotApplied,
    }
}

impl Database for ClientDatabase {
    type Value = rangedb_client::Bytes;

    async fn get(&self, key: &[u8]) -> Result<Option<Found<Self::Value>>, Failure> {
        let found = self.client.get(key).await.map_err(failure)?;
        Ok(found.map(|found| Found {
            value: found.value,
            version: found.version,
        }))
    }

    async fn get_many(&self, keys: &[Vec<u8>]) -> Result<u64, Failure> {
        let mut absent = 0;
        for found in self.client.get_many(keys).await {
            absent += u64::from(found.map_err(failure)?.is_none());
        }
        Ok(absent)
    }

    async fn put(&self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.client
            .put(key, value)
            .await
            .map(|_| ())
            .map_err(failure)
    }

    async fn delete(&self, key: &[u8]) -> Result<bool, Failure> {
        self.client
            .delete(key)
            .await
            .map(|deleted| deleted.existed)
            .map_err(failure)
    }

    async fn compare_and_swap(
        &self,
        key: &[u8],
        condition: Condition<'_>,
        new: Option<&[u8]>,
    ) -> Result<bool, Failure> {
        let condition = match condition {
            Condition::Absent => rangedb_client::Condition::Absent,
            Condition::Value(value) => rangedb_client::Condition::Value(value),
            Condition::Version(version) => rangedb_client::Condition::Version(version),
        };
        let outcome = match new {
            Some(new) => self.client.compare_and_swap(key, condition, new).await,
            None => self.client.compare_and_delete(key, condition).await,
        };
        let outcome = outcome.map_err(failure)?;
        Ok(matches!(outcome, CasOutcome::Swapped { .. }))
    }

    async fn scan(&self, start: &[u8], rows: usize) -> Result<usize, Failure> {
        let page = self.client.scan(start..).page_size(rows).page().await;
        Ok(page.map_err(failure)?.rows.len())
    }
}
