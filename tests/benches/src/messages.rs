//! The encoding of messages between shards: requests that are forwarded, and their answers.

use divan::Bencher;
use rangedb_engine::gateway::message::{
    Body, Found, Reply, Request, decode_reply, decode_request, encode_reply, encode_request,
};
use rangedb_engine::request::Versioned;
use rangedb_engine::types::{Blob, Timestamp};

use crate::{KEY_LEN, KEYS, SAMPLE, VALUE_LEN};

const NOW: Timestamp = Timestamp(1 << 50);

fn key() -> Blob {
    Blob::from_static(&[b'k'; KEY_LEN])
}

fn request(body: Body) -> Request {
    Request {
        left_us: Some(1_000_000),
        token: NOW,
        target: None,
        body,
    }
}

fn get() -> Request {
    request(Body::Get { key: key() })
}

fn multi_get() -> Request {
    let keys = (0..KEYS).map(|_| key()).collect();
    request(Body::MultiGet { keys })
}

fn value() -> Reply {
    let found = Versioned {
        value: Blob::from_static(&[b'v'; VALUE_LEN]),
        version: NOW,
    };
    Reply {
        now: NOW,
        result: Ok(Found::Value(Some(found))),
    }
}

fn bench_encode_request(bencher: Bencher<'_, '_>, request: &Request) {
    bencher.bench_local(|| encode_request(divan::black_box(request)));
}

fn bench_decode_request(bencher: Bencher<'_, '_>, request: &Request) {
    let bytes = encode_request(request);
    assert_eq!(decode_request(&bytes).as_ref(), Some(request));
    bencher.bench_local(|| decode_request(divan::black_box(&bytes)));
}

#[divan::bench(sample_size = SAMPLE)]
fn encode_get(bencher: Bencher<'_, '_>) {
    bench_encode_request(bencher, &get());
}

#[divan::bench(sample_size = SAMPLE)]
fn decode_get(bencher: Bencher<'_, '_>) {
    bench_decode_request(bencher, &get());
}

#[divan::bench(sample_size = SAMPLE)]
fn encode_multi_get_of_100(bencher: Bencher<'_, '_>) {
    bench_encode_request(bencher, &multi_get());
}

#[divan::bench(sample_size = SAMPLE)]
fn decode_multi_get_of_100(bencher: Bencher<'_, '_>) {
    bench_decode_request(bencher, &multi_get());
}

#[divan::bench(sample_size = SAMPLE)]
fn encode_value(bencher: Bencher<'_, '_>) {
    let reply = value();
    bencher.bench_local(|| encode_reply(divan::black_box(&reply)));
}

#[divan::bench(sample_size = SAMPLE)]
fn decode_value(bencher: Bencher<'_, '_>) {
    let reply = value();
    let bytes = encode_reply(&reply).into();
    assert_eq!(decode_reply(&bytes), Some(reply));
    bencher.bench_local(|| decode_reply(divan::black_box(&bytes)));
}
