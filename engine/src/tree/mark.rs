//! The row in which the tables record the id of the log that they belong to.

/// What the tables record of the log to which they belong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeMark {
    /// The log's id.
    pub log: u128,
    /// Flushes of the tree, with the one that writes this.
    pub flushes: u64,
    /// The log's last durable batch when the memtable froze.
    pub batch: u64,
}

/// The version of the row.
const VERSION: u8 = 1;

impl TreeMark {
    /// The row's value.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&self.log.to_le_bytes());
        bytes.extend_from_slice(&self.flushes.to_le_bytes());
        bytes.extend_from_slice(&self.batch.to_le_bytes());
        bytes
    }

    /// Reads a row's value; `None` if it is not one of this version.
    pub fn decode(bytes: &[u8]) -> Option<TreeMark> {
        let rest = bytes.strip_prefix(&[VERSION])?;
        let (log, rest) = rest.split_first_chunk()?;
        let (flushes, rest) = rest.split_first_chunk()?;
        Some(TreeMark {
            log: u128::from_le_bytes(*log),
            flushes: u64::from_le_bytes(*flushes),
            batch: u64::from_le_bytes(rest.try_into().ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use rangedb_fuzz::fuzz;

    use super::*;

    #[test]
    fn fuzz_marks() {
        let mark = |log, flushes, batch| {
            TreeMark {
                log,
                flushes,
                batch,
            }
            .encode()
        };
        let corpus = [mark(u128::MAX - 5, 7, 9), mark(0, 0, 0)];
        let tally = fuzz("marks of trees", &corpus, |bytes, meter| {
            let Some(mark) = meter.decode(|| TreeMark::decode(bytes)) else {
                return false;
            };
            assert_eq!(mark.encode(), bytes);
            true
        });
        assert!(tally.accepted > 100, "{tally:?}");
    }

    #[test]
    fn the_tables_mark_is_read_back_and_a_part_of_it_is_not() {
        let mark = TreeMark {
            log: u128::MAX - 5,
            flushes: 7,
            batch: 9,
        };
        let bytes = mark.encode();
        assert_eq!(TreeMark::decode(&bytes), Some(mark));
        for len in 0..bytes.len() {
            assert_eq!(TreeMark::decode(&bytes[..len]), None, "{len}");
        }
    }
}
