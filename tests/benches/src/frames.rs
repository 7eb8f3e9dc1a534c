//! The frames of clients, as a server and a client read and write them.

use divan::Bencher;
use rangedb_protocol::{FlatBufferBuilder, Reply, Request, RequestBody, Session, frame};

use crate::{KEY_LEN, KEYS, SAMPLE, VALUE_LEN};

const KEY: [u8; KEY_LEN] = [b'k'; KEY_LEN];
const VALUE: [u8; VALUE_LEN] = [b'v'; VALUE_LEN];

fn get() -> RequestBody<'static> {
    RequestBody::Get { key: &KEY }
}

fn multi_get() -> RequestBody<'static> {
    RequestBody::MultiGet {
        keys: [&KEY[..]; KEYS].into_iter().collect(),
    }
}

fn put() -> RequestBody<'static> {
    let session = Session {
        client: 1,
        sequence: 2,
        lowest_unanswered: 1,
        first_tried: 1 << 50,
    };
    RequestBody::put(&KEY, &VALUE, session)
}

fn value() -> Reply<'static> {
    Reply::Value {
        value: Some(&VALUE),
        version: 1 << 50,
    }
}

fn request(body: RequestBody<'static>) -> Request<'static> {
    Request {
        body,
        target: None,
        deadline_ms: 1000,
        token: 1 << 50,
    }
}

/// Writes a request's frame into a buffer that is used again.
fn encode_request(bencher: Bencher<'_, '_>, body: RequestBody<'static>) {
    let (mut builder, mut bytes) = (FlatBufferBuilder::new(), Vec::new());
    let request = request(body);
    bencher.bench_local(|| {
        bytes.clear();
        request.encode(1, &mut builder, &mut bytes);
        divan::black_box(bytes.len())
    });
}

/// Reads a request's frame, and checks its table.
fn decode_request(bencher: Bencher<'_, '_>, body: RequestBody<'static>) {
    let (mut builder, mut bytes) = (FlatBufferBuilder::new(), Vec::new());
    request(body).encode(1, &mut builder, &mut bytes);
    bencher.bench_local(|| {
        let found = frame::decode(divan::black_box(&bytes));
        let found = found.expect("a good frame").expect("a whole frame");
        let request = Request::decode(found.kind, found.body);
        divan::black_box(request.expect("a good request").deadline_ms)
    });
}

#[divan::bench(sample_size = SAMPLE)]
fn encode_get(bencher: Bencher<'_, '_>) {
    encode_request(bencher, get());
}

#[divan::bench(sample_size = SAMPLE)]
fn decode_get(bencher: Bencher<'_, '_>) {
    decode_request(bencher, get());
}

#[divan::bench(sample_size = SAMPLE)]
fn decode_multi_get_of_100(bencher: Bencher<'_, '_>) {
    decode_request(bencher, multi_get());
}

#[divan::bench(sample_size = SAMPLE)]
fn decode_put(bencher: Bencher<'_, '_>) {
    decode_request(bencher, put());
}

#[divan::bench(sample_size = SAMPLE)]
fn encode_value(bencher: Bencher<'_, '_>) {
    let (mut builder, mut bytes) = (FlatBufferBuilder::new(), Vec::new());
    let reply = value();
    bencher.bench_local(|| {
        bytes.clear();
        reply.encode(1, 1 << 50, &mut builder, &mut bytes);
        divan::black_box(bytes.len())
    });
}

#[divan::bench(sample_size = SAMPLE)]
fn decode_value(bencher: Bencher<'_, '_>) {
    let (mut builder, mut bytes) = (FlatBufferBuilder::new(), Vec::new());
    value().encode(1, 1 << 50, &mut builder, &mut bytes);
    bencher.bench_local(|| {
        let found = frame::decode(divan::black_box(&bytes));
        let found = found.expect("a good frame").expect("a whole frame");
        let reply = Reply::decode(found.kind, found.body);
        divan::black_box(reply.expect("a good reply").1)
    });
}
