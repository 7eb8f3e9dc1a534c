//! Multi-gets: the list of keys in the request, and the results in the reply. Keys and values lie in one
//! vector of bytes each, one right after the other, so that neither side allocates for each of them.

use flatbuffers::FlatBufferBuilder;

use crate::generated::wire;
use crate::limits::{MULTI_GET_ERRORS_MAX, MULTI_GET_KEYS_MAX};
use crate::reply::{BadReply, ErrorReply, build_error, error_reply};
use crate::request::{BadRequest, Request, RequestBody};

/// What a multi-get gives for one key, apart from the bytes of its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyResult {
    /// The key has no value.
    Absent,
    /// The key has a value: the next `len` bytes of the values.
    Value {
        /// The version of the value.
        version: u64,
        /// The length of the value.
        len: u32,
    },
    /// The key cannot be read, because of the error in this place among the errors.
    Failed(u16),
    /// The key was not read, because the reply was full. It may be asked for again.
    NotRead,
}

/// What a multi-get gives for its keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Values<'a> {
    /// One result for each key, in the order of the keys.
    pub results: Vec<KeyResult>,
    /// The values, one right behind the other.
    pub values: &'a [u8],
    /// Why keys cannot be read.
    pub errors: Vec<ErrorReply>,
}

/// What a multi-get gives for one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyRead<'a, 'e> {
    /// The key has no value.
    Absent,
    /// The key has this value.
    Value {
        /// The newest value.
        value: &'a [u8],
        /// The commit timestamp of the value.
        version: u64,
    },
    /// The key cannot be read.
    Failed(&'e ErrorReply),
    /// The key was not read, because the reply was full. It may be asked for again.
    NotRead,
}

impl<'a> Values<'a> {
    /// What each key has, in the order of the keys.
    pub fn keys(&self) -> impl Iterator<Item = KeyRead<'a, '_>> {
        let mut values = self.values;
        self.results.iter().map(move |result| match result {
            KeyResult::Absent => KeyRead::Absent,
            KeyResult::Value { version, len } => {
                // Decoding has checked the lengths.
                let (value, rest) = values.split_at_checked(*len as usize).unwrap_or_default();
                values = rest;
                let version = *version;
                KeyRead::Value { value, version }
            }
            KeyResult::Failed(error) => match self.errors.get(usize::from(*error)) {
                Some(error) => KeyRead::Failed(error),
                None => KeyRead::NotRead,
            },
            KeyResult::NotRead => KeyRead::NotRead,
        })
    }

    /// Whether the results name all bytes of the values, and errors that are there.
    fn is_consistent(&self) -> bool {
        let mut len = 0;
        let is_there = |result: &KeyResult| match result {
            KeyResult::Value { len: more, .. } => {
                len += u64::from(*more);
                true
            }
            KeyResult::Failed(error) => usize::from(*error) < self.errors.len(),
            KeyResult::Absent | KeyResult::NotRead => true,
        };
        self.results.iter().all(is_there) && len == self.values.len() as u64
    }

    /// Decodes the table of a reply.
    pub(crate) fn decode(t: &wire::Values<'a>) -> Result<Values<'a>, BadReply> {
        let results = t.results().iter().map(|result| match result.state() {
            wire::KeyState::Absent => Ok(KeyResult::Absent),
            wire::KeyState::Value => Ok(KeyResult::Value {
                version: result.version(),
                len: result.length(),
            }),
            wire::KeyState::Failed => Ok(KeyResult::Failed(result.error())),
            wire::KeyState::NotRead => Ok(KeyResult::NotRead),
            _ => Err(BadReply::BadValues),
        });
        if t.errors()
            .is_some_and(|errors| errors.len() > MULTI_GET_ERRORS_MAX)
        {
            return Err(BadReply::BadValues);
        }
        let errors = t.errors().into_iter().flatten();
        let values = Values {
            results: results.collect::<Result<_, _>>()?,
            values: t.values().bytes(),
            errors: errors.map(|error| error_reply(&error)).collect(),
        };
        match values.is_consistent() {
            true => Ok(values),
            false => Err(BadReply::BadValues),
        }
    }

    /// Builds the table of a reply.
    pub(crate) fn build(&self, b: &mut FlatBufferBuilder<'_>, now: u64) {
        let errors = (!self.errors.is_empty()).then(|| {
            let errors = self.errors.iter();
            // Only the whole reply has a time.
            let errors: Vec<_> = errors.map(|error| build_error(b, error, 0)).collect();
            b.create_vector(&errors)
        });
        let values = Some(b.create_vector(self.values));
        let results: Vec<_> = self.results.iter().map(wire_result).collect();
        let args = wire::ValuesArgs {
            results: Some(b.create_vector(&results)),
            values,
            errors,
            now,
        };
        let root = wire::Values::create(b, &args);
        b.finish_minimal(root);
    }
}

fn wire_result(result: &KeyResult) -> wire::KeyResult {
    let (version, length, error, state) = match result {
        KeyResult::Absent => (0, 0, 0, wire::KeyState::Absent),
        KeyResult::Value { version, len } => (*version, *len, 0, wire::KeyState::Value),
        KeyResult::Failed(error) => (0, 0, *error, wire::KeyState::Failed),
        KeyResult::NotRead => (0, 0, 0, wire::KeyState::NotRead),
    };
    wire::KeyResult::new(version, length, error, state)
}

/// Decodes the table of a request.
pub(crate) fn decode(table: &[u8]) -> Result<Request<'_>, BadRequest> {
    let t = flatbuffers::root::<wire::MultiGet<'_>>(table)?;
    let mut rest = t.keys().bytes();
    // One key more than the limit is enough for the request to be refused later.
    let count = t.lengths().len().min(MULTI_GET_KEYS_MAX + 1);
    let mut keys = Vec::with_capacity(count);
    for length in t.lengths().iter().take(count) {
        let split = rest.split_at_checked(length as usize);
        let (key, more) = split.ok_or(BadRequest::KeyLengths)?;
        keys.push(key);
        rest = more;
    }
    if !rest.is_empty() && count == t.lengths().len() {
        return Err(BadRequest::KeyLengths);
    }
    Ok(Request {
        body: RequestBody::MultiGet { keys },
        target: None,
        deadline_ms: t.deadline_ms(),
        token: t.token(),
    })
}

/// Builds the table of a request.
pub(crate) fn build(keys: &[&[u8]], request: &Request<'_>, b: &mut FlatBufferBuilder<'_>) {
    let lengths: Vec<u32> = keys.iter().map(|key| key.len() as u32).collect();
    let lengths = Some(b.create_vector(&lengths));
    let args = wire::MultiGetArgs {
        keys: Some(b.create_vector(&keys.concat())),
        lengths,
        deadline_ms: request.deadline_ms,
        token: request.token,
    };
    let root = wire::MultiGet::create(b, &args);
    b.finish_minimal(root);
}
