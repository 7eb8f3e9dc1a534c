//! Reads of several keys: carries out what the [core](crate::core::multi_get) decides.

use std::time::Instant;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use rangedb_protocol::{Reply, RequestBody, reply_kind};

use crate::client::Client;
use crate::core::Kind;
use crate::core::multi_get::{KeyOutcome, Part, Source};
use crate::error::{Error, ErrorCode, Fate};
use crate::limits;
use crate::operations::Versioned;
use crate::retry_loop::{Request, Take};

/// The value of a key, or the reason why it cannot be read.
type Found = Result<Option<Versioned>, Error>;

impl Client {
    /// Reads several keys. The results are in the order of the keys, and each key has its own: the
    /// value, that there is none, or an error. Each read is linearizable. The keys are asked for by
    /// shard, those of a shard in one request. Keys of one range of the cluster are read at one
    /// moment if one reply holds their values: 4 MiB fit. Keys of several ranges are not.
    ///
    /// ```no_run
    /// # use rangedb_client::{Client, Error};
    /// # async fn example(client: Client) -> Result<(), Error> {
    /// let found = client.get_many(["user/1", "user/2"]).await;
    /// let users = found.into_iter().collect::<Result<Vec<_>, _>>()?;
    /// assert_eq!(users.len(), 2);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn get_many<K: AsRef<[u8]>>(&self, keys: impl IntoIterator<Item = K>) -> Vec<Found> {
        self.get_many_within(keys, usize::MAX).await
    }

    /// Reads several keys like [`Client::get_many`], but requests no more keys once the values have
    /// this many bytes. The remaining keys then have the error [`ErrorCode::Invalid`].
    pub async fn get_many_within<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
        bytes_max: usize,
    ) -> Vec<Found> {
        let keys: Vec<K> = keys.into_iter().collect();
        let keys: Vec<&[u8]> = keys.iter().map(AsRef::as_ref).collect();
        let mut results: Vec<Option<Found>> = keys
            .iter()
            .map(|key| limits::check(&RequestBody::Get { key }).err().map(Err))
            .collect();
        let open = results.iter().enumerate();
        let open = open.filter_map(|(at, result)| result.is_none().then_some(at));
        let deadline = self.deadline();
        let core = &self.inner.core;
        let ask = |part| self.ask_part(&keys, part, deadline);
        let mut asking: FuturesUnordered<_> =
            core.parts(&keys, open).into_iter().map(ask).collect();
        let mut bytes = 0;
        while let Some((part, answer)) = asking.next().await {
            let sorted = self.sort(&keys, &part, answer);
            let values = sorted.iter().flatten().flatten().flatten();
            bytes += values.map(|found| found.value.len()).sum::<usize>();
            let is_full = bytes >= bytes_max;
            let mut again = Vec::new();
            for (at, found) in part.keys.iter().zip(sorted) {
                let found = found.or_else(|| is_full.then(|| Err(too_much(bytes_max))));
                match results.get_mut(*at) {
                    Some(result) if found.is_some() => *result = found,
                    _ => again.push(*at),
                }
            }
            asking.extend(core.parts(&keys, again).into_iter().map(ask));
        }
        // Each key is in one part after the other until it has a result.
        results
            .into_iter()
            .map(|result| result.unwrap_or_else(|| Err(missing())))
            .collect()
    }

    /// Asks for the keys of a part; returns the body of the reply.
    async fn ask_part(
        &self,
        keys: &[&[u8]],
        part: Part,
        deadline: Instant,
    ) -> (Part, Result<(Bytes, Source), Error>) {
        let of_part: Vec<&[u8]> = (part.keys.iter())
            .filter_map(|at| keys.get(*at).copied())
            .collect();
        let take: Take<Bytes> =
            |reply, frame| matches!(reply, Reply::Values(_)).then(|| frame.clone());
        let body = |_| RequestBody::MultiGet {
            keys: of_part.clone(),
        };
        let called = self.call_from(Request {
            key: of_part.first().copied(),
            body: &body,
            kind: Kind::Read,
            take,
            deadline,
        });
        let answer = called.await;
        (part, answer)
    }

    /// The result of each key of a part, by the reply; `None`: the key must be requested again.
    fn sort(
        &self,
        keys: &[&[u8]],
        part: &Part,
        answer: Result<(Bytes, Source), Error>,
    ) -> Vec<Option<Found>> {
        let (body, source) = match answer {
            Ok(answer) => answer,
            Err(error) => return vec![Some(Err(error)); part.keys.len()],
        };
        let values = match Reply::decode(reply_kind::VALUES, &body) {
            Ok((Reply::Values(values), _)) => values,
            _ => return vec![Some(Err(missing())); part.keys.len()],
        };
        let mut reads = values.keys();
        let sorted = part.keys.iter().map(|at| {
            let key = keys.get(*at).copied().unwrap_or_default();
            let Some(read) = reads.next() else {
                return Some(Err(missing()));
            };
            match self.inner.core.take_key(key, read, &source) {
                KeyOutcome::Read(found) => Some(Ok(found.map(|(value, version)| Versioned {
                    value: body.slice_ref(value),
                    version,
                }))),
                KeyOutcome::Failed(error) => Some(Err(error)),
                KeyOutcome::Again => None,
            }
        });
        sorted.collect()
    }
}

/// The error of a key that is not asked for again.
fn too_much(bytes_max: usize) -> Error {
    let message = format!("the values of the other keys have {bytes_max} bytes already");
    Error::new(ErrorCode::Invalid, Fate::NotApplied, message)
}

/// The error of a key for which a reply has no result.
fn missing() -> Error {
    let message = "the server's reply has no result for this key";
    Error::new(ErrorCode::Internal, Fate::NotApplied, message)
}
