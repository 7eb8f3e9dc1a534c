//! Log lines as events of the history: every line with a field `event`, whatever the level of the log
//! is. Runs on the thread that logs, and only hands the words over.

use std::fmt::{Debug, Write};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::History;
use super::record::Event;

/// The field that names the kind of an event.
const EVENT: &str = "event";

/// A layer that sees log lines with the field `event`.
pub fn layer<S>(history: History) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let is_event = |line: &Metadata<'_>| line.is_event() && line.fields().field(EVENT).is_some();
    let filter = filter_fn(is_event).with_max_level_hint(LevelFilter::INFO);
    Lines { history }.with_filter(filter)
}

struct Lines {
    history: History,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, line: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut words = Words::default();
        line.record(&mut words);
        if !words.kind.is_empty() {
            let text = format!("{}{}", words.message, words.fields);
            self.history.event(Event::new(&words.kind, &text));
        }
    }
}

/// The words of a line.
#[derive(Default)]
struct Words {
    kind: String,
    message: String,
    fields: String,
}

impl Visit for Words {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            EVENT => value.clone_into(&mut self.kind),
            "message" => value.clone_into(&mut self.message),
            "unlogged" if value == "0" => {}
            // Writing to a string cannot fail.
            name => drop(write!(self.fields, " {name}={value}")),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}
