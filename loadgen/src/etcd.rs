//! etcd as a [`Database`], so that the same driver measures it: gets and puts over gRPC.
//!
//! Written directly on HTTP/2. Two messages of two fields need no protobuf compiler, and the
//! generator, which shares the machine with what it measures, should cost as little here as with
//! RangeDB's client. There are only the operations that are measured; others fail as `unsupported`.

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Uri, Version};

use crate::database::{Condition, Database, Failure, Found};

/// Flow-control windows that are never the limit here.
const WINDOW_LEN: u32 = 16 << 20;
/// Length of a message's head: a byte that says "not compressed", and the length.
const MESSAGE_HEAD_LEN: usize = 5;
/// Protobuf's tags of field 1 of both requests, the key, and of field 2 of a put, the value.
const KEY_FIELD: u8 = 0x0a;
const VALUE_FIELD: u8 = 0x12;
/// Fields of a range response (its rows) and of a row (its modification revision and its value).
const ROWS_FIELD: u64 = 2;
const REVISION_FIELD: u64 = 3;
const ROW_VALUE_FIELD: u64 = 5;

/// A connection to one node of etcd.
#[derive(Clone, Debug)]
pub struct EtcdDatabase {
    sender: SendRequest<Bytes>,
    authority: http::uri::Authority,
}

impl EtcdDatabase {
    /// Connects to a node.
    ///
    /// # Errors
    /// Nothing listens there, or it does not speak HTTP/2.
    pub async fn connect(address: &str) -> Result<EtcdDatabase, String> {
        let failed = |error: &dyn std::fmt::Display| format!("{address}: {error}");
        let authority = address.parse().map_err(|error| failed(&error))?;
        let stream = tokio::net::TcpStream::connect(address).await;
        let stream = stream.map_err(|error| failed(&error))?;
        stream.set_nodelay(true).map_err(|error| failed(&error))?;
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW_LEN)
            .initial_connection_window_size(WINDOW_LEN)
            .handshake(stream)
            .await
            .map_err(|error| failed(&error))?;
        // When the connection breaks, all calls on it fail.
        tokio::spawn(connection);
        Ok(EtcdDatabase { sender, authority })
    }

    /// Calls a method; returns the message of its response.
    async fn call(&self, path: &'static str, message: Bytes) -> Result<BytesMut, Failure> {
        let uri = Uri::builder()
            .scheme("http")
            .authority(self.authority.clone())
            .path_and_query(PathAndQuery::from_static(path))
            .build()
            .map_err(|_| failure("bad_uri"))?;
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        headers.insert("te", HeaderValue::from_static("trailers"));
        let sender = self.sender.clone().ready().await;
        let mut sender = sender.map_err(|_| failure("broken"))?;
        let sent = sender.send_request(request, false);
        let (response, mut stream) = sent.map_err(|_| failure("broken"))?;
        stream
            .send_data(message, true)
            .map_err(|_| failure("broken"))?;
        let response = response.await.map_err(|_| failure("broken"))?;
        is_granted(response.headers(), true)?;
        let mut body = response.into_body();
        let mut received = BytesMut::new();
        while let Some(piece) = body.data().await {
            let piece = piece.map_err(|_| failure("broken"))?;
            let released = body.flow_control().release_capacity(piece.len());
            released.map_err(|_| failure("broken"))?;
            received.extend_from_slice(&piece);
        }
        let trailers = body.trailers().await.map_err(|_| failure("broken"))?;
        is_granted(&trailers.unwrap_or_default(), false)?;
        if received.len() < MESSAGE_HEAD_LEN {
            return Err(failure("no_message"));
        }
        Ok(received.split_off(MESSAGE_HEAD_LEN))
    }
}

fn failure(code: &'static str) -> Failure {
    Failure {
        code: Cow::Borrowed(code),
        is_not_applied: false,
    }
}

/// Checks the status of a call, which is in the trailers, or in the headers if it was refused.
fn is_granted(headers: &http::HeaderMap, may_lack: bool) -> Result<(), Failure> {
    match headers.get("grpc-status").map(HeaderValue::as_bytes) {
        Some(b"0") => Ok(()),
        None if may_lack => Ok(()),
        Some(status) => Err(Failure {
            code: Cow::Owned(format!("grpc_{}", String::from_utf8_lossy(status))),
            is_not_applied: false,
        }),
        None => Err(failure("no_status")),
    }
}

fn put_varint(mut number: u64, to: &mut BytesMut) {
    while number >= 0x80 {
        to.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    to.put_u8(number as u8);
}

/// A request of one or two fields, with its head.
fn message(fields: &[(u8, &[u8])]) -> Bytes {
    let len: usize = fields.iter().map(|(_, bytes)| bytes.len() + 11).sum();
    let mut to = BytesMut::with_capacity(MESSAGE_HEAD_LEN + len);
    to.put_bytes(0, MESSAGE_HEAD_LEN);
    for (field, bytes) in fields {
        to.put_u8(*field);
        put_varint(bytes.len() as u64, &mut to);
        to.put_slice(bytes);
    }
    let len = (to.len() - MESSAGE_HEAD_LEN) as u32;
    to[1..MESSAGE_HEAD_LEN].copy_from_slice(&len.to_be_bytes());
    to.freeze()
}

fn take_varint(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// The content of a field.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn take_field<'a>(from: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let mark = take_varint(from)?;
    let field = match mark & 7 {
        0 => Field::Number(take_varint(from)?),
        2 => {
            let len = usize::try_from(take_varint(from)?).ok()?;
            let (bytes, rest) = from.split_at_checked(len)?;
            *from = rest;
            Field::Bytes(bytes)
        }
        _ => return None,
    };
    Some((mark >> 3, field))
}

/// The first row of a range's response: its revision and value.
fn first_row(response: &[u8]) -> Option<Found<Bytes>> {
    let mut rest = response;
    let row = loop {
        if let (ROWS_FIELD, Field::Bytes(row)) = take_field(&mut rest)? {
            break row;
        }
    };
    let mut found = Found {
        value: Bytes::new(),
        version: 0,
    };
    let mut rest = row;
    while let Some(field) = take_field(&mut rest) {
        match field {
            (REVISION_FIELD, Field::Number(revision)) => found.version = revision,
            (ROW_VALUE_FIELD, Field::Bytes(value)) => found.value = Bytes::copy_from_slice(value),
            _ => {}
        }
    }
    Some(found)
}

impl Database for EtcdDatabase {
    type Value = Bytes;

    async fn get(&self, key: &[u8]) -> Result<Option<Found<Bytes>>, Failure> {
        let request = message(&[(KEY_FIELD, key)]);
        let response = self.call("/etcdserverpb.KV/Range", request).await?;
        Ok(first_row(&response))
    }

    async fn put(&self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        let request = message(&[(KEY_FIELD, key), (VALUE_FIELD, value)]);
        self.call("/etcdserverpb.KV/Put", request).await.map(drop)
    }

    async fn delete(&self, _: &[u8]) -> Result<bool, Failure> {
        Err(failure("unsupported"))
    }

    async fn compare_and_swap(
        &self,
        _: &[u8],
        _: Condition<'_>,
        _: Option<&[u8]>,
    ) -> Result<bool, Failure> {
        Err(failure("unsupported"))
    }

    async fn scan(&self, _: &[u8], _: usize) -> Result<usize, Failure> {
        Err(failure("unsupported"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_a_head_and_its_fields() {
        let value = [7; 200];
        let bytes = message(&[(KEY_FIELD, b"key"), (VALUE_FIELD, &value)]);
        assert_eq!(
            bytes[..10],
            [0, 0, 0, 0, 208, 0x0a, 3, b'k', b'e', b'y'][..]
        );
        assert_eq!(bytes[10..13], [0x12, 0xc8, 1][..]);
        assert_eq!(bytes[13..], value);
    }

    #[test]
    fn a_row_is_found_behind_other_fields() {
        // A header, then a row of key, two revisions, a version and a value, then a count.
        let response = [
            0x0a, 2, 0x18, 9, 0x12, 13, 0x0a, 1, b'k', 0x10, 2, 0x18, 0x85, 1, 0x20, 1, 0x2a, 1,
            b'v', 0x20, 1,
        ];
        let found = first_row(&response).expect("there is a row");
        assert_eq!((found.value.as_ref(), found.version), (&b"v"[..], 133));
        assert!(first_row(&response[..4]).is_none());
        assert!(first_row(&response[..9]).is_none());
    }
}
