//! `compare`: the same work on RangeDB and on another database, or on another build of RangeDB, in turn and in
//! one run.
//!
//! Each comparison goes several rounds, in which both take turns, so that a slow moment of
//! the machine is seen as spread and not as a difference. `loadgen` drives RangeDB. CPU is the time
//! per operation, user and system, that the server's processes used: the most reliable figure on a
//! shared machine.

pub mod build;
pub mod etcd;
mod one_node;
pub mod redis;
mod table;

const VALUE_SIZE: &str = "128";
/// The kernel's unit of CPU time in /proc, which is the same wherever Rust's binaries for Linux
/// run.
const TICKS_PER_SECOND: f64 = 100.0;

/// The results of one work on one server.
#[derive(Clone, Copy, Debug)]
struct Figures {
    rate: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_us: f64,
}

/// The options of every comparison.
struct Options {
    records: String,
    seconds: f64,
    rounds: usize,
}

impl Options {
    /// Takes an option and its value; `false` if the option is unknown or its value invalid.
    fn take(&mut self, option: &[&str]) -> bool {
        match option {
            ["--records", number] if number.parse::<u64>().is_ok_and(|number| number > 0) => {
                self.records = (*number).to_owned();
                true
            }
            ["--seconds", number] => {
                let time = rangedb_duration::parse(number).ok();
                let seconds = time.map(|time| time.as_secs_f64());
                let seconds = seconds.filter(|seconds| *seconds > 0.0);
                self.seconds = seconds.unwrap_or(self.seconds);
                seconds.is_some()
            }
            ["--rounds", number] => {
                let rounds = number.parse().ok().filter(|rounds| *rounds > 0);
                self.rounds = rounds.unwrap_or(self.rounds);
                rounds.is_some()
            }
            _ => false,
        }
    }
}

/// The median of a figure over several rounds, with the least and the most.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    /// The spread of these numbers; each is NaN if there are none.
    fn of(numbers: impl Iterator<Item = f64>) -> Spread {
        let mut all: Vec<f64> = numbers.collect();
        all.sort_by(f64::total_cmp);
        let at = |place: usize| all.get(place).copied().unwrap_or(f64::NAN);
        Spread {
            median: at(all.len() / 2),
            least: at(0),
            most: at(all.len().saturating_sub(1)),
        }
    }

    /// The median, with the least and the most in parentheses.
    fn text(&self, decimals: usize) -> String {
        let Spread {
            median,
            least,
            most,
        } = self;
        format!("{median:.decimals$} ({least:.decimals$}-{most:.decimals$})")
    }
}

fn figures_of_loadgen(text: &str, cpu_seconds: f64) -> Result<Figures, String> {
    let result: serde_json::Value =
        serde_json::from_str(text).map_err(|error| format!("loadgen: {error}"))?;
    let number = |value: &serde_json::Value| value.as_f64().ok_or("loadgen: a figure is missing");
    let latency = &result["latency_us"]["all"];
    Ok(Figures {
        rate: number(&result["ops_per_second"])?,
        p50_us: number(&latency["p50"])?,
        p99_us: number(&latency["p99"])?,
        cpu_us: cpu_seconds * 1e6 / number(&result["operations"])?.max(1.0),
    })
}

/// The user and system time of all threads of a process.
fn cpu_seconds(id: u32) -> Result<f64, String> {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat"))
        .map_err(|error| format!("process {id}: {error}"))?;
    // The name in parentheses may contain anything; the fields after it are numbers.
    let fields: Vec<&str> = text
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_whitespace()
        .collect();
    let ticks = |index: usize| {
        fields
            .get(index)
            .and_then(|field| field.parse::<f64>().ok())
    };
    match (ticks(11), ticks(12)) {
        (Some(user), Some(system)) => Ok((user + system) / TICKS_PER_SECOND),
        _ => Err(format!(
            "process {id}: /proc has another form than expected"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_loadgen_is_read() {
        let json = r#"{"operations":1000,"ops_per_second":200.0,
                       "latency_us":{"all":{"p50":1.5,"p99":2.0}}}"#;
        let figures = figures_of_loadgen(json, 0.002).expect("figures");
        assert_eq!((figures.rate, figures.cpu_us), (200.0, 2.0));
        assert!(figures_of_loadgen("{}", 1.0).is_err());
    }

    #[test]
    fn options_are_taken_with_a_value_that_makes_sense() {
        let mut options = Options {
            records: "1".to_owned(),
            seconds: 1.0,
            rounds: 1,
        };
        for option in [["--seconds", "0.5"], ["--records", "7"], ["--rounds", "3"]] {
            assert!(options.take(&option), "{option:?}");
        }
        let taken = (options.records.as_str(), options.seconds, options.rounds);
        assert_eq!(taken, ("7", 0.5, 3));
        for wrong in [
            &["--seconds", "0"][..],
            &["--records", "x"],
            &["--records"],
            &["--rounds", "0"],
        ] {
            assert!(!options.take(wrong), "{wrong:?}");
        }
    }

    #[test]
    fn the_middle_round_counts() {
        let spread = Spread::of([3.0, 1.0, 2.0].into_iter());
        assert_eq!(spread.text(1), "2.0 (1.0-3.0)");
        assert!(Spread::of(std::iter::empty()).median.is_nan());
    }

    #[test]
    fn cpu_time_of_this_process_is_found() {
        assert!(cpu_seconds(std::process::id()).is_ok());
    }
}
