//! The results of a multi-get, one for each key. The values lie in one buffer, one right after the other,
//! and keys of one range share an error, so that nothing is allocated for each key. Pure.

#![allow(
    missing_docs,
    reason = "what rkyv derives for enums has fields without docs"
)]

use crate::error::Error;
use crate::limits::{MULTI_GET_ERRORS_MAX, MULTI_GET_VALUES_LEN_MAX};
use crate::types::Timestamp;

/// What there is for one key, apart from the bytes of its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum KeyResult {
    /// The key has no value.
    Absent,
    /// The key has a value: the next so many bytes of the values.
    Value { version: Timestamp, len: u32 },
    /// The key cannot be read, because of the error in this place among the errors.
    Failed { error: u16 },
    /// The key was not read, because the reply was full.
    NotRead,
}

/// What there is for one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyRead<'a> {
    /// Its value and version, if it has one.
    Found(Option<(&'a [u8], Timestamp)>),
    /// The key cannot be read.
    Failed(&'a Error),
    /// The key was not read, because the reply was full.
    NotRead,
}

/// The results of the keys of a multi-get, in the order of the keys.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct Values {
    results: Vec<KeyResult>,
    values: Vec<u8>,
    errors: Vec<Error>,
}

impl Values {
    /// Room for the results of so many keys.
    pub fn with_capacity(keys: usize) -> Values {
        Values {
            results: Vec::with_capacity(keys),
            ..Values::default()
        }
    }

    /// The results of keys that all have the same error.
    pub fn all_failed(keys: usize, error: &Error) -> Values {
        let mut values = Values::with_capacity(keys);
        (0..keys).for_each(|_| values.push(KeyRead::Failed(error)));
        values
    }

    /// Adds the result of the next key. If there is no room for its value or its error, the key counts
    /// as not read; there always is for the first one.
    pub fn push(&mut self, read: KeyRead<'_>) {
        let result = match read {
            KeyRead::Found(None) => KeyResult::Absent,
            KeyRead::Found(Some((value, version))) => self.add_value(value, version),
            KeyRead::Failed(error) => self.add_error(error),
            KeyRead::NotRead => KeyResult::NotRead,
        };
        self.results.push(result);
    }

    fn add_value(&mut self, value: &[u8], version: Timestamp) -> KeyResult {
        if self.values.len() + value.len() > MULTI_GET_VALUES_LEN_MAX {
            return KeyResult::NotRead;
        }
        self.values.extend_from_slice(value);
        KeyResult::Value {
            version,
            // Bounded by the line above.
            len: value.len() as u32,
        }
    }

    fn add_error(&mut self, error: &Error) -> KeyResult {
        let known = self.errors.iter().rposition(|known| known == error);
        let place = known.unwrap_or(self.errors.len());
        if place >= MULTI_GET_ERRORS_MAX {
            return KeyResult::NotRead;
        }
        if known.is_none() {
            self.errors.push(error.clone());
        }
        KeyResult::Failed {
            error: place as u16,
        }
    }

    /// The results, apart from the bytes of the values.
    pub fn results(&self) -> &[KeyResult] {
        &self.results
    }

    /// The values, one right behind the other.
    pub fn bytes(&self) -> &[u8] {
        &self.values
    }

    /// The errors that results name.
    pub fn errors(&self) -> &[Error] {
        &self.errors
    }

    /// Replaces each error.
    pub fn replace_errors(&mut self, by: impl Fn(&Error) -> Error) {
        self.errors.iter_mut().for_each(|error| *error = by(error));
    }

    /// What there is for each key. Results that name bytes or errors which are not there count as not
    /// read: they may have come from another node.
    pub fn keys(&self) -> impl Iterator<Item = KeyRead<'_>> {
        let mut values = self.values.as_slice();
        self.results.iter().map(move |result| match result {
            KeyResult::Absent => KeyRead::Found(None),
            KeyResult::Value { version, len } => match values.split_at_checked(*len as usize) {
                Some((value, rest)) => {
                    values = rest;
                    KeyRead::Found(Some((value, *version)))
                }
                None => KeyRead::NotRead,
            },
            KeyResult::Failed { error } => match self.errors.get(usize::from(*error)) {
                Some(error) => KeyRead::Failed(error),
                None => KeyRead::NotRead,
            },
            KeyResult::NotRead => KeyRead::NotRead,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::VALUE_LEN_MAX;

    #[test]
    fn results_are_read_as_they_were_added() {
        let (one, two) = (Error::Moved(Vec::new()), Error::ShuttingDown);
        let reads = [
            KeyRead::Found(Some((b"value", Timestamp(3)))),
            KeyRead::Failed(&one),
            KeyRead::Found(None),
            KeyRead::Failed(&two),
            KeyRead::Found(Some((b"", Timestamp(4)))),
            KeyRead::Failed(&one),
            KeyRead::NotRead,
            KeyRead::Found(Some((b"v", Timestamp(5)))),
        ];
        let mut values = Values::default();
        reads.iter().for_each(|read| values.push(*read));
        assert_eq!(values.keys().collect::<Vec<_>>(), reads);
        assert_eq!(values.errors(), [one, two]);
    }

    #[test]
    fn what_has_no_room_is_not_read_and_the_keys_after_it_may_be() {
        let value = vec![0; VALUE_LEN_MAX];
        let large = KeyRead::Found(Some((&value, Timestamp(1))));
        let small = KeyRead::Found(Some((b"small", Timestamp(2))));
        let mut values = Values::default();
        values.push(small);
        for _ in 0..MULTI_GET_VALUES_LEN_MAX / VALUE_LEN_MAX {
            values.push(large);
        }
        values.push(small);
        let reads: Vec<_> = values.keys().collect();
        assert_eq!(&reads[reads.len() - 3..], [large, KeyRead::NotRead, small]);
        assert!(values.bytes().len() <= MULTI_GET_VALUES_LEN_MAX);

        let mut values = Values::default();
        let errors = (0..=MULTI_GET_ERRORS_MAX).map(|at| Error::Invalid(at.to_string()));
        errors.for_each(|error| values.push(KeyRead::Failed(&error)));
        assert_eq!(values.errors().len(), MULTI_GET_ERRORS_MAX);
        assert_eq!(values.keys().last(), Some(KeyRead::NotRead));
    }

    #[test]
    fn results_that_name_what_is_not_there_are_not_read() {
        let version = Timestamp(1);
        let values = Values {
            results: vec![
                KeyResult::Value { version, len: 2 },
                KeyResult::Value { version, len: 2 },
                KeyResult::Failed { error: 0 },
            ],
            values: b"abc".to_vec(),
            errors: Vec::new(),
        };
        let reads: Vec<_> = values.keys().collect();
        let wanted = [
            KeyRead::Found(Some((b"ab", version))),
            KeyRead::NotRead,
            KeyRead::NotRead,
        ];
        assert_eq!(reads, wanted);
    }
}
