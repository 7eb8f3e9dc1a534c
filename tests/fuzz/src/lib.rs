//! Fuzzing of decoders within unit tests: bytes that were valid are changed at random, many thousand times,
//! and decoded. The same binary tries the same bytes each time.
//!
//! Whatever the bytes are, a decoder gives a value or an error: it does not panic, and it allocates no more
//! than a multiple of what it was given, so that a length field costs no memory. What it accepts is encoded
//! and decoded again by the caller's check, and must be the same value.
//!
//! `RANGEDB_FUZZ_ROUNDS` sets how many changes are tried, `RANGEDB_FUZZ_SEED` which.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Changes that are tried of each decoder.
const ROUNDS: u64 = 50_000;
/// Bytes that a decoder may hold at once for each byte that it is given: lists of small values are larger in
/// memory than on the wire, and a growing vector is there twice.
const BYTES_PER_BYTE: u64 = 32;
/// Bytes that a decoder may hold besides, such as a table of all shards that a node may have.
const BYTES_ALWAYS: u64 = 64 << 10;
/// Changed bytes do not grow beyond this.
const LEN_MAX: usize = 256 << 10;
/// Most changes at once.
const CHANGES_MAX: usize = 3;
/// Bytes of an input that a failure shows.
const SHOWN_MAX: usize = 512;

/// Measures what a decoder allocates.
#[derive(Debug, Default)]
pub struct Meter {
    bytes_max: u64,
}

impl Meter {
    /// Runs the decoder, and nothing else.
    pub fn decode<T>(&mut self, decode: impl FnOnce() -> T) -> T {
        let mut value = None;
        let info = allocation_counter::measure(|| value = Some(decode()));
        self.bytes_max = self.bytes_max.max(info.bytes_max);
        match value {
            Some(value) => value,
            // A decoder that panics does not get here.
            None => unreachable!("it was measured"),
        }
    }
}

/// What became of the changed bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// They were decoded.
    pub accepted: u64,
    /// They were refused.
    pub refused: u64,
}

/// Tries a decoder with changes of each of these valid inputs.
///
/// `check` decodes by [`Meter::decode`], asserts that what it gets is the same when it is encoded and decoded
/// again, and says whether there was a value.
///
/// # Panics
/// The decoder panics, takes too much memory, refuses a valid input, or accepts every changed one.
pub fn fuzz(name: &str, corpus: &[Vec<u8>], check: impl Fn(&[u8], &mut Meter) -> bool) -> Tally {
    fuzz_repaired(name, corpus, |_| (), check)
}

/// The same for bytes under a checksum: `repair` makes it right, in half of the inputs, so that what lies
/// behind it is met.
///
/// # Panics
/// As [`fuzz`] does.
pub fn fuzz_repaired(
    name: &str,
    corpus: &[Vec<u8>],
    repair: impl Fn(&mut [u8]),
    check: impl Fn(&[u8], &mut Meter) -> bool,
) -> Tally {
    for (index, valid) in corpus.iter().enumerate() {
        assert!(
            attempt(name, valid, &check),
            "{name}: valid input {index} is refused"
        );
    }
    let mut random = Random::new(name);
    let mut tally = Tally::default();
    for round in 0..variable("RANGEDB_FUZZ_ROUNDS").unwrap_or(ROUNDS) {
        let mut bytes = random.changed(corpus);
        if round % 2 == 0 {
            repair(&mut bytes);
        }
        match attempt(name, &bytes, &check) {
            true => tally.accepted += 1,
            false => tally.refused += 1,
        }
    }
    assert!(tally.refused > 0, "{name}: accepts whatever it is given");
    tally
}

fn attempt(name: &str, bytes: &[u8], check: &impl Fn(&[u8], &mut Meter) -> bool) -> bool {
    let mut meter = Meter::default();
    let shown = || {
        let digits = bytes
            .iter()
            .take(SHOWN_MAX)
            .map(|byte| format!("{byte:02x}"));
        format!(
            "{name}: {} bytes: {}",
            bytes.len(),
            digits.collect::<String>()
        )
    };
    let accepted = catch_unwind(AssertUnwindSafe(|| check(bytes, &mut meter)));
    let accepted = accepted.unwrap_or_else(|panic| {
        eprintln!("{}", shown());
        resume_unwind(panic)
    });
    let allowed = BYTES_ALWAYS + BYTES_PER_BYTE * bytes.len() as u64;
    let taken = meter.bytes_max;
    assert!(
        taken <= allowed,
        "{taken} bytes allocated, {allowed} allowed\n{}",
        shown()
    );
    accepted
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Random numbers, by xorshift64.
struct Random(u64);

impl Random {
    /// Those of a decoder: a hash of its name (FNV-1a), and the seed.
    fn new(name: &str) -> Random {
        let seed = variable("RANGEDB_FUZZ_SEED").unwrap_or(0);
        let begin = 0xcbf2_9ce4_8422_2325_u64 ^ seed;
        let mix = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        Random(name.bytes().fold(begin, mix) | 1)
    }

    fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below the limit; 0 if that is 0.
    fn below(&mut self, limit: usize) -> usize {
        (self.number() >> 16) as usize % limit.max(1)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.number() as u8).collect()
    }

    /// One of the inputs, changed.
    fn changed(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = corpus[self.below(corpus.len())].clone();
        for _ in 0..=self.below(CHANGES_MAX) {
            let (at, rest) = self.place(bytes.len());
            match self.below(9) {
                0 | 1 => self.set_number(&mut bytes, at),
                2 => bytes.truncate(at),
                3 => {
                    let len = self.below(64);
                    bytes.splice(at..at, self.bytes(len));
                }
                4 => drop(bytes.drain(at..at + self.below(rest + 1))),
                5 => {
                    let piece = bytes[at..at + self.below(rest + 1)].to_vec();
                    bytes.splice(at..at, piece);
                }
                6 => {
                    let other = &corpus[self.below(corpus.len())];
                    let (from, _) = self.place(other.len());
                    bytes.truncate(at);
                    bytes.extend_from_slice(&other[from..]);
                }
                7 if self.below(4) == 0 => bytes = self.bytes(at),
                _ if rest > 0 => bytes[at] ^= 1 << self.below(8),
                _ => {}
            }
            bytes.truncate(LEN_MAX);
        }
        bytes
    }

    /// A place in so many bytes, or at their end, and how many follow.
    fn place(&mut self, len: usize) -> (usize, usize) {
        let at = self.below(len + 1);
        (at, len - at)
    }

    /// Writes a number that a length, a count, an offset or an id may be, in either order of bytes.
    fn set_number(&mut self, bytes: &mut [u8], at: usize) {
        let len = bytes.len() as u64;
        let near = [0, 1, 2, len.wrapping_sub(1), len, len + 1, len * 2];
        let far = [
            0x7f,
            0xff,
            0x7fff,
            0xffff,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
        ];
        let number = match self.below(4) {
            0 => near[self.below(near.len())],
            1 => far[self.below(far.len())],
            2 => u64::MAX - self.number() % 3,
            _ => self.number(),
        };
        let width = [1, 2, 4, 8][self.below(4)];
        let mut digits = number.to_le_bytes()[..width].to_vec();
        if self.below(4) == 0 {
            digits.reverse();
        }
        bytes
            .iter_mut()
            .skip(at)
            .zip(digits)
            .for_each(|(to, from)| *to = from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A length of four bytes, then as many bytes.
    fn sample() -> Vec<Vec<u8>> {
        vec![b"\x03\0\0\0abc".to_vec(), b"\0\0\0\0".to_vec()]
    }

    fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
        let (len, rest) = bytes.split_first_chunk::<4>()?;
        let len = u32::from_le_bytes(*len) as usize;
        (rest.len() == len).then(|| rest.to_vec())
    }

    #[test]
    fn a_sound_decoder_passes_and_is_met_by_good_and_bad_bytes() {
        let check = |bytes: &[u8], meter: &mut Meter| meter.decode(|| decode(bytes)).is_some();
        let tally = fuzz("sound", &sample(), check);
        assert!(tally.accepted > 100 && tally.refused > 1000, "{tally:?}");
        assert_eq!(tally, fuzz("sound", &sample(), check), "each time the same");
    }

    #[test]
    #[should_panic(expected = "bytes allocated")]
    fn a_decoder_that_believes_a_length_is_found() {
        fuzz("believes", &sample(), |bytes, meter| {
            let (len, rest) = bytes.split_first_chunk::<4>().unwrap_or((&[0; 4], &[]));
            let len = u32::from_le_bytes(*len) as usize;
            let memory = meter.decode(|| Vec::<u8>::with_capacity(len));
            memory.capacity() >= rest.len()
        });
    }

    #[test]
    #[should_panic(expected = "out of range")]
    fn a_decoder_that_panics_is_found() {
        fuzz("panics", &sample(), |bytes, meter| {
            let Some((len, rest)) = bytes.split_first_chunk::<4>() else {
                return false;
            };
            let len = u32::from_le_bytes(*len) as usize;
            meter.decode(|| rest[..len].len() == rest.len())
        });
    }

    #[test]
    #[should_panic(expected = "valid input 0 is refused")]
    fn a_corpus_that_is_not_valid_is_found() {
        fuzz("refuses", &sample(), |_, _| false);
    }
}
