//! Latencies in files that the tools of HdrHistogram read: an interval log, which has a histogram for every
//! second, and a percentile distribution of the whole run. Values are nanoseconds in the log's histograms and
//! milliseconds in text, as those tools take them by default.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::SystemTime;

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use crate::probe::{LATENCY_DIGITS, Latencies};
use crate::series::Interval;

const NANOS_PER_MILLI: f64 = 1e6;
/// Steps of the distribution for each halving of what is left of the percentiles.
const STEPS_PER_HALF: u32 = 5;
/// The tag of seconds that were not measured. Tools pass over it unless they are asked for it.
const WARMUP_TAG: &str = "warmup";

/// Runs something that tells of every second, and writes the seconds into an interval log if a file is named.
///
/// # Errors
/// The file cannot be written.
pub fn with_interval_log<R>(
    path: Option<&Path>,
    run: impl FnOnce(&mut dyn FnMut(&Interval)) -> R,
) -> Result<R, String> {
    let Some(path) = path else {
        return Ok(run(&mut |_| {}));
    };
    let bad = |error: &dyn std::fmt::Display| format!("cannot write {}: {error}", path.display());
    let mut file = BufWriter::new(File::create(path).map_err(|error| bad(&error))?);
    let mut serializer = V2DeflateSerializer::new();
    let now = SystemTime::now();
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment("latencies of loadgen, in nanoseconds")
        .with_start_time(now)
        .with_base_time(now)
        .with_max_value_divisor(NANOS_PER_MILLI)
        .begin_log_with(&mut file, &mut serializer)
        .map_err(|error| bad(&error))?;
    let mut failure = None;
    let result = run(&mut |interval| {
        let tag = Tag::new(WARMUP_TAG).filter(|_| interval.is_warmup);
        let (begin, length) = (interval.begin, interval.length);
        let written = log.write_histogram(&interval.second.latencies, begin, length, tag);
        if let Err(error) = written {
            failure.get_or_insert_with(|| bad(&error));
        }
    });
    file.flush().map_err(|error| bad(&error))?;
    failure.map_or(Ok(result), Err)
}

/// Writes the percentile distribution of a run into a file.
///
/// # Errors
/// The file cannot be written.
pub fn write_distribution(path: &Path, latencies: &Latencies) -> Result<(), String> {
    std::fs::write(path, distribution(latencies))
        .map_err(|error| format!("cannot write {}: {error}", path.display()))
}

/// The percentile distribution as text.
fn distribution(latencies: &Latencies) -> String {
    let mut text = format!(
        "{:>12} {:>14} {:>10} {:>14}\n\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    );
    let millis = |nanos: f64| nanos / NANOS_PER_MILLI;
    let mut total = 0;
    // Writing to a string cannot fail.
    for step in latencies.iter_quantiles(STEPS_PER_HALF) {
        total += step.count_since_last_iteration();
        let (value, quantile) = (
            millis(step.value_iterated_to() as f64),
            step.quantile_iterated_to(),
        );
        let _ = write!(text, "{value:12.3} {quantile:2.12} {total:10}");
        if quantile < 1.0 {
            let _ = write!(text, " {:14.2}", 1.0 / (1.0 - quantile));
        }
        text.push('\n');
    }
    let (mean, deviation) = (millis(latencies.mean()), millis(latencies.stdev()));
    let (max, count) = (millis(latencies.max() as f64), latencies.len());
    let _ = writeln!(
        text,
        "#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]\n\
         #[Max     = {max:12.3}, Total count    = {count:12}]\n\
         #[Buckets = {:12}, SubBuckets     = {:12}]",
        latencies.buckets(),
        // The number of values that each bucket distinguishes.
        (2 * 10_u32.pow(u32::from(LATENCY_DIGITS))).next_power_of_two(),
    );
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hdrhistogram::Histogram;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use super::*;
    use crate::probe::new_latencies;
    use crate::series::Second;

    fn interval(begin: u64, is_warmup: bool, nanos: &[u64]) -> Interval {
        let mut latencies = new_latencies();
        for nanos in nanos {
            latencies.saturating_record(*nanos);
        }
        Interval {
            begin: Duration::from_secs(begin),
            length: Duration::from_secs(1),
            is_warmup,
            second: Second {
                operations: nanos.len() as u64,
                errors: 0,
                latencies,
            },
        }
    }

    #[test]
    fn an_interval_log_is_read_again_and_the_warm_up_is_tagged() {
        let folder = std::env::temp_dir().join(format!("loadgen-hlog-{}", std::process::id()));
        let all = [
            interval(0, true, &[5_000_000]),
            interval(1, false, &[1_000_000, 2_000_000, 3_000_000]),
        ];
        let told = with_interval_log(Some(&folder), |each| all.iter().for_each(each));
        told.expect("it is written");
        let log = std::fs::read(&folder).expect("it is there");
        std::fs::remove_file(&folder).expect("it was there");
        let mut tags = Vec::new();
        for (entry, wanted) in IntervalLogIterator::new(&log)
            .map(|entry| entry.expect("an entry"))
            .filter_map(|entry| match entry {
                LogEntry::Interval(histogram) => Some(histogram),
                _ => None,
            })
            .zip(&all)
        {
            tags.push(entry.tag().map(|tag| tag.as_str().to_owned()));
            assert_eq!(entry.start_timestamp(), wanted.begin);
            let bytes = base64(entry.encoded_histogram());
            let read: Histogram<u64> = Deserializer::new()
                .deserialize(&mut &bytes[..])
                .expect("a histogram");
            assert_eq!(read, wanted.second.latencies);
        }
        assert_eq!(tags, [Some(WARMUP_TAG.to_owned()), None]);
        let missing = Path::new("/no/such/folder/file");
        assert!(with_interval_log(Some(missing), |_| ()).is_err());
    }

    /// The bytes of a text in base64.
    fn base64(text: &str) -> Vec<u8> {
        let digit = |c: u8| match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        let digits: Vec<u8> = text.bytes().filter(|c| *c != b'=').map(digit).collect();
        let mut bytes = Vec::new();
        for four in digits.chunks(4) {
            let bits = four
                .iter()
                .fold(0_u32, |bits, digit| bits << 6 | u32::from(*digit));
            let whole = (bits << (6 * (4 - four.len()))).to_be_bytes();
            bytes.extend_from_slice(&whole[1..four.len()]);
        }
        bytes
    }

    #[test]
    fn a_distribution_ends_with_the_slowest() {
        let all: Vec<u64> = (1..=1000).map(|millis| millis * 1_000_000).collect();
        let text = distribution(&interval(0, false, &all).second.latencies);
        let lines: Vec<Vec<&str>> = (text.lines())
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines[0],
            ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]
        );
        let half = lines
            .iter()
            .find(|line| line.get(1) == Some(&"0.500000000000"));
        let half = half.expect("the median");
        assert_eq!(half[3], "2.00");
        assert!(
            (half[0].parse::<f64>().expect("a number") - 500.0).abs() < 1.0,
            "{half:?}"
        );
        let last = lines
            .iter()
            .rfind(|line| line.len() == 3 && line[0] != "#[Max");
        assert_eq!(last.expect("the last")[1..], ["1.000000000000", "1000"]);
        assert!(text.contains("Total count    =         1000]"), "{text}");
        assert!(text.contains("SubBuckets     =         2048]"), "{text}");
    }
}
