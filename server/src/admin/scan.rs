//! `GET /api/v1/scan`: one page of a scan; all parameters are in the query.
//!
//! The answer is `{"rows":[...],"continuation":"..."}`, rows as the command line prints them. The
//! continuation is there if there may be more; it says what is scanned, so that only `limit` may
//! stand beside it. Keys in the query are text, any byte as `%NN`; a plus sign is one.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use hyper::{Response, StatusCode};
use rangedb_client::{Client, Continuation, Error, Page, ScanOptions};
use rangedb_protocol::continuation::Continuation as Token;
use rangedb_protocol::limits::SCAN_ROWS_MAX;

use super::body::{Text, json_response, percent_decoded};
use super::failure::Failure;
use super::json;

/// Rows of a page if the query does not say how many.
const LIMIT_DEFAULT: usize = 1000;
const NAMES: [&str; 7] = [
    "start",
    "end",
    "prefix",
    "reverse",
    "keys_only",
    "limit",
    "continuation",
];

/// What a query asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scan {
    page: PageRequest,
    keys_only: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum PageRequest {
    First(ScanOptions),
    Next(Continuation),
}

impl Scan {
    /// Reads a query.
    pub fn of(query: &str) -> Result<Scan, Failure> {
        let mut parameters = parameters(query, &NAMES)?;
        let limit = match parameters.remove("limit") {
            Some(text) => limit(&text)?,
            None => LIMIT_DEFAULT,
        };
        if let Some(text) = parameters.remove("continuation") {
            if let Some(name) = parameters.keys().next() {
                let message = format!(
                    "a continuation says what is scanned: leave {name} out; only limit may be given"
                );
                return Err(Failure::invalid(message));
            }
            return Scan::next(&text, limit);
        }
        let (start, end) = (parameters.remove("start"), parameters.remove("end"));
        let mut options = match parameters.remove("prefix") {
            Some(_) if start.is_some() || end.is_some() => {
                let message = "prefix says both bounds: leave start and end out, or prefix";
                return Err(Failure::invalid(message));
            }
            Some(prefix) => ScanOptions::prefix(prefix),
            None => {
                let mut interval = ScanOptions::default();
                interval.start = start.map(Into::into);
                interval.end = end.map(Into::into);
                interval
            }
        };
        let keys_only = is_set(&mut parameters, "keys_only")?;
        options.page_size = limit;
        options.reverse = is_set(&mut parameters, "reverse")?;
        options.keys_only = keys_only;
        let page = PageRequest::First(options);
        Ok(Scan { page, keys_only })
    }

    fn next(text: &[u8], limit: usize) -> Result<Scan, Failure> {
        let bytes = bytes_of(text).ok_or_else(|| {
            Failure::invalid("the continuation is not pairs of hexadecimal digits")
        })?;
        let token = Token::decode(&bytes).map_err(|bad| Failure::invalid(bad.to_string()))?;
        let page = PageRequest::Next(Continuation::from_bytes(bytes, limit));
        let keys_only = token.keys_only;
        Ok(Scan { page, keys_only })
    }

    /// Reads the page.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn read(&self, client: Client) -> Result<Page, Error> {
        match self.page.clone() {
            PageRequest::First(options) => client.scan(options).page().await,
            PageRequest::Next(continuation) => client.scan_next(continuation).await,
        }
    }

    /// The answer with the page.
    pub fn answer(&self, page: Page) -> Response<Text> {
        let mut text = "{\"rows\":[".to_owned();
        for (number, row) in page.rows.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            // Writing to a string cannot fail.
            let _ = write!(text, "{comma}{}", json::row(row, self.keys_only, false));
        }
        text.push(']');
        if let Some(continuation) = page.continuation {
            let token = json::hex(continuation.as_bytes());
            let _ = write!(text, ",\"continuation\":\"{token}\"");
        }
        text.push('}');
        json_response(StatusCode::OK, text)
    }
}

/// The parameters of a query by their names, decoded. There may be those of these names.
pub(super) fn parameters<'a>(
    query: &'a str,
    names: &[&str],
) -> Result<BTreeMap<&'a str, Vec<u8>>, Failure> {
    let mut parameters = BTreeMap::new();
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        if !names.contains(&name) {
            let known = names.join(", ");
            let message = format!("there is no parameter '{name}'; the parameters are {known}");
            return Err(Failure::invalid(message));
        }
        let value = percent_decoded(value).ok_or_else(|| {
            let message = format!("a percent sign in {name} has no two hexadecimal digits");
            Failure::invalid(message)
        })?;
        if parameters.insert(name, value).is_some() {
            return Err(Failure::invalid(format!("{name} is given twice")));
        }
    }
    Ok(parameters)
}

fn limit(text: &[u8]) -> Result<usize, Failure> {
    let number = std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok());
    number
        .filter(|number| (1..=SCAN_ROWS_MAX).contains(number))
        .ok_or_else(|| {
            let message = format!("limit must be a number of rows from 1 to {SCAN_ROWS_MAX}");
            Failure::invalid(message)
        })
}

/// A parameter that is there, or `true`, or `false`.
fn is_set(parameters: &mut BTreeMap<&str, Vec<u8>>, name: &str) -> Result<bool, Failure> {
    match parameters.remove(name).as_deref() {
        None | Some(b"false") => Ok(false),
        Some(b"" | b"true") => Ok(true),
        Some(_) => Err(Failure::invalid(format!("{name} is true or false"))),
    }
}

/// The bytes of pairs of hexadecimal digits.
fn bytes_of(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let pair = |pair: &[u8]| match pair {
        [high, low] => Some((digit(high)? << 4 | digit(low)?) as u8),
        _ => None,
    };
    text.chunks(2).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(query: &str) -> Option<ScanOptions> {
        match Scan::of(query).ok()?.page {
            PageRequest::First(options) => Some(options),
            PageRequest::Next(_) => None,
        }
    }

    #[test]
    fn a_query_says_what_is_scanned() {
        let page = |options: ScanOptions| Some(options.page_size(LIMIT_DEFAULT));
        assert_eq!(first(""), page(ScanOptions::from(..)));
        let wanted = ScanOptions::from(&b"a&b"[..]..b"\xff+")
            .page_size(7)
            .reverse()
            .keys_only();
        let query = "start=a%26b&end=%ff+&limit=7&reverse=true&keys_only";
        assert_eq!(first(query), Some(wanted));
        let prefixed = ScanOptions::from("user%".."user&");
        assert_eq!(first("prefix=user%25&reverse=false"), page(prefixed));
        assert_eq!(first("prefix=%ff"), page(ScanOptions::from(b"\xff"..)));
    }

    #[test]
    fn a_continuation_stands_alone_but_for_a_limit() {
        let token = Token {
            keys_only: true,
            ..Token::default()
        };
        let bytes = token.encode();
        let query = format!("limit=3&continuation={}", json::hex(&bytes));
        let wanted = Scan {
            page: PageRequest::Next(Continuation::from_bytes(bytes, 3)),
            keys_only: true,
        };
        assert_eq!(Scan::of(&query).ok(), Some(wanted));
        for beside in ["start=a", "prefix=a", "reverse", "keys_only=true"] {
            assert!(Scan::of(&format!("{query}&{beside}")).is_err(), "{beside}");
        }
        for bad in ["", "0", "0g", "00ff"] {
            assert!(Scan::of(&format!("continuation={bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_query_that_makes_no_sense_is_refused() {
        for bad in [
            "prefix=a&start=a",
            "prefix=a&end=b",
            "limit=0",
            "limit=10001",
            "limit=x",
            "limit=%ff",
            "reverse=yes",
            "start=a&start=b",
            "start=%f",
            "from=a",
        ] {
            assert!(Scan::of(bad).is_err(), "{bad}");
        }
    }
}
