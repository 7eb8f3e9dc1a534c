//! Scans: an interval of keys, in either direction, as a stream of rows or page by page.

use std::borrow::Cow;
use std::ops::{
    Bound, Range, RangeBounds, RangeFrom, RangeFull, RangeInclusive, RangeTo, RangeToInclusive,
};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_core::Stream;
use rangedb_limits::last_key_before;
use rangedb_protocol::continuation::{self, prefix_end};
use rangedb_protocol::{Reply, RequestBody, Session as RequestId};

use crate::client::Client;
use crate::core::Kind;
use crate::error::Error;
use crate::retry_loop::Request;

/// The interval of a scan, its direction, and the size of its pages.
///
/// Ranges of strings and bytes convert into it, and so does `..`, which is all keys:
///
/// ```
/// use rangedb_client::ScanOptions;
///
/// let options = ScanOptions::from("a".."m").reverse().page_size(100);
/// assert_eq!(options.end.as_deref(), Some(&b"m"[..]));
/// let events = ScanOptions::prefix("event/").keys_only();
/// assert_eq!(events.end.as_deref(), Some(&b"event0"[..]));
/// assert_eq!(ScanOptions::from(..), ScanOptions::default());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ScanOptions {
    /// First key, inclusive; `None`: from the first key of all.
    pub start: Option<Bytes>,
    /// End, exclusive; `None`: to the last key of all.
    pub end: Option<Bytes>,
    /// Most rows in a page; 0: as many as the server sends at once.
    pub page_size: usize,
    /// Descending order, from the last key before `end` down to `start`.
    pub reverse: bool,
    /// Gives keys and versions only; the server does not send the values.
    pub keys_only: bool,
}

impl ScanOptions {
    /// A scan of the keys that begin with `prefix`; with an empty prefix, of all keys.
    pub fn prefix(prefix: impl AsRef<[u8]>) -> ScanOptions {
        let prefix = prefix.as_ref();
        ScanOptions {
            start: Some(Bytes::copy_from_slice(prefix)),
            end: prefix_end(prefix).map(Bytes::from),
            ..ScanOptions::default()
        }
    }

    /// Scans in descending order.
    #[must_use]
    pub fn reverse(self) -> ScanOptions {
        ScanOptions {
            reverse: true,
            ..self
        }
    }

    /// Asks for keys and versions only.
    #[must_use]
    pub fn keys_only(self) -> ScanOptions {
        ScanOptions {
            keys_only: true,
            ..self
        }
    }

    /// Sets the most rows in a page; 0: as many as the server sends at once.
    #[must_use]
    pub fn page_size(self, rows: usize) -> ScanOptions {
        ScanOptions {
            page_size: rows,
            ..self
        }
    }

    fn between<K: AsRef<[u8]>>(bounds: &impl RangeBounds<K>) -> ScanOptions {
        let at = |key: &K| Bytes::copy_from_slice(key.as_ref());
        // The first key after another is that key and a zero byte.
        let after = |key: &K| Bytes::from([key.as_ref(), &[0]].concat());
        ScanOptions {
            start: match bounds.start_bound() {
                Bound::Included(key) => Some(at(key)),
                Bound::Excluded(key) => Some(after(key)),
                Bound::Unbounded => None,
            },
            end: match bounds.end_bound() {
                Bound::Included(key) => Some(after(key)),
                Bound::Excluded(key) => Some(at(key)),
                Bound::Unbounded => None,
            },
            ..ScanOptions::default()
        }
    }
}

/// All keys.
impl From<RangeFull> for ScanOptions {
    fn from(_: RangeFull) -> ScanOptions {
        ScanOptions::default()
    }
}

macro_rules! from_ranges {
    ($($range:ty),*) => {
        $(impl<K: AsRef<[u8]>> From<$range> for ScanOptions {
            fn from(range: $range) -> ScanOptions {
                ScanOptions::between(&range)
            }
        })*
    };
}

from_ranges!(
    Range<K>,
    RangeFrom<K>,
    RangeTo<K>,
    RangeInclusive<K>,
    RangeToInclusive<K>,
    (Bound<K>, Bound<K>)
);

/// A row of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Row {
    /// The key as it was written.
    pub key: Bytes,
    /// The key's value; empty if the scan asked for keys only.
    pub value: Bytes,
    /// The value's version.
    pub version: u64,
}

/// A page of a scan: a snapshot within one range. It may have no rows although the scan goes on: a server
/// ends a page too when it has passed over very many deleted rows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page {
    /// The rows, in key order: ascending, or descending if the scan goes in reverse.
    pub rows: Vec<Row>,
    /// Where the scan goes on; `None`: the interval has no more rows.
    pub continuation: Option<Continuation>,
}

/// Where a scan goes on, in the same direction. Opaque; valid until the versions of its snapshot are
/// collected, even after a restart of servers or of this client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continuation {
    token: Bytes,
    page_size: usize,
}

impl Continuation {
    /// The bytes, for a caller that goes on later or elsewhere.
    pub fn as_bytes(&self) -> &[u8] {
        &self.token
    }

    /// A continuation from its bytes, with at most `page_size` rows in a page (0: as many as the
    /// server sends at once). Bytes that are not a continuation are refused when the scan goes on.
    pub fn from_bytes(bytes: impl Into<Bytes>, page_size: usize) -> Continuation {
        let token = bytes.into();
        Continuation { token, page_size }
    }
}

fn page(reply: Reply<'_>, frame: &Bytes) -> Option<Page> {
    let Reply::Rows {
        rows, continuation, ..
    } = reply
    else {
        return None;
    };
    let rows = rows.into_iter().map(|row| Row {
        key: frame.slice_ref(row.key),
        value: frame.slice_ref(row.value),
        version: row.version,
    });
    let continuation = continuation.map(|token| Continuation {
        token: frame.slice_ref(token),
        page_size: 0,
    });
    Some(Page {
        rows: rows.collect(),
        continuation,
    })
}

type PageFuture = Pin<Box<dyn Future<Output = Result<Page, Error>> + Send>>;

/// Where a [`Scan`] reads its next page.
#[derive(Debug)]
enum Position {
    Start,
    Next(Continuation),
    End,
}

/// A scan that has not been read to its end: a [`Stream`] of rows.
///
/// Rows come from pages, which the scan fetches as they are needed. Each page is a snapshot within
/// one range; several pages need not show the same moment. After an error the stream ends.
///
/// ```no_run
/// # async fn example(client: rangedb_client::Client) -> Result<(), rangedb_client::Error> {
/// let mut scan = client.scan("a".."m").reverse().limit(10);
/// while let Some(row) = scan.next().await {
///     let row = row?;
///     println!("{:?} = {:?}, version {}", row.key, row.value, row.version);
/// }
/// let users = client.scan_prefix("user/").count().await?;
/// println!("{users} users");
/// # Ok(())
/// # }
/// ```
#[must_use = "a scan reads nothing by itself"]
pub struct Scan {
    client: Client,
    options: ScanOptions,
    /// How many more rows the stream gives; `usize::MAX`: all.
    left: usize,
    position: Position,
    rows: std::vec::IntoIter<Row>,
    pending: Option<PageFuture>,
}

impl std::fmt::Debug for Scan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scan")
            .field("options", &self.options)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl Scan {
    /// Scans in descending order. It counts before the first row is read, as the other settings.
    pub fn reverse(mut self) -> Scan {
        self.options.reverse = true;
        self
    }

    /// Asks for keys and versions only; values are empty.
    pub fn keys_only(mut self) -> Scan {
        self.options.keys_only = true;
        self
    }

    /// Sets the most rows in a page; 0: as many as the server sends at once.
    pub fn page_size(mut self, rows: usize) -> Scan {
        self.options.page_size = rows;
        self
    }

    /// Ends the stream after this many rows.
    pub fn limit(mut self, rows: usize) -> Scan {
        self.left = rows;
        self
    }

    /// The next row; `None`: there are no more. The same as `StreamExt::next`.
    pub async fn next(&mut self) -> Option<Result<Row, Error>> {
        std::future::poll_fn(|context| self.poll_row(context)).await
    }

    /// Reads the rest of the rows.
    ///
    /// # Errors
    /// See [`Error`]; rows that were read before are lost.
    pub async fn collect(mut self) -> Result<Vec<Row>, Error> {
        let mut rows = Vec::new();
        while let Some(row) = self.next().await {
            rows.push(row?);
        }
        Ok(rows)
    }

    /// Counts the rest of the rows, without reading values.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn count(self) -> Result<usize, Error> {
        let mut scan = self.keys_only();
        let mut count = 0;
        while let Some(row) = scan.next().await {
            row?;
            count += 1;
        }
        Ok(count)
    }

    /// Reads the first page alone; [`Client::scan_next`] goes on with its continuation.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn page(self) -> Result<Page, Error> {
        let rows = self.page_rows();
        self.client.first_page(self.options.page_size(rows)).await
    }

    /// Most rows of the next page.
    fn page_rows(&self) -> usize {
        match self.options.page_size {
            0 if self.left == usize::MAX => 0,
            0 => self.left,
            rows => rows.min(self.left),
        }
    }

    fn poll_row(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Row, Error>>> {
        while self.left > 0 {
            if let Some(row) = self.rows.next() {
                if self.left != usize::MAX {
                    self.left -= 1;
                }
                return Poll::Ready(Some(Ok(row)));
            }
            let pending = match &mut self.pending {
                Some(pending) => pending,
                None => match self.fetch() {
                    Some(page) => self.pending.insert(page),
                    None => break,
                },
            };
            let page = ready!(pending.as_mut().poll(context));
            self.pending = None;
            match page {
                Ok(page) => {
                    self.rows = page.rows.into_iter();
                    self.position = page.continuation.map_or(Position::End, Position::Next);
                }
                Err(error) => {
                    self.position = Position::End;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
        Poll::Ready(None)
    }

    /// Asks for the next page, if there is one.
    fn fetch(&self) -> Option<PageFuture> {
        let (client, rows) = (self.client.clone(), self.page_rows());
        match &self.position {
            Position::Start => {
                let options = self.options.clone().page_size(rows);
                Some(Box::pin(async move { client.first_page(options).await }))
            }
            Position::Next(continuation) => {
                let continuation = Continuation {
                    page_size: rows,
                    ..continuation.clone()
                };
                Some(Box::pin(
                    async move { client.scan_next(continuation).await },
                ))
            }
            Position::End => None,
        }
    }
}

impl Stream for Scan {
    type Item = Result<Row, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_row(context)
    }
}

impl Client {
    /// Scans an interval of keys: `"a".."m"`, `"a"..`, `..`, or [`ScanOptions`]. Nothing is sent
    /// until the scan is read.
    pub fn scan(&self, interval: impl Into<ScanOptions>) -> Scan {
        Scan {
            client: self.clone(),
            options: interval.into(),
            left: usize::MAX,
            position: Position::Start,
            rows: Vec::new().into_iter(),
            pending: None,
        }
    }

    /// Scans the keys that begin with `prefix`.
    pub fn scan_prefix(&self, prefix: impl AsRef<[u8]>) -> Scan {
        self.scan(ScanOptions::prefix(prefix))
    }

    async fn first_page(&self, options: ScanOptions) -> Result<Page, Error> {
        let start = options.start.as_deref();
        let body = |_| RequestBody::Scan {
            start,
            end: options.end.as_deref(),
            rows_max: u32::try_from(options.page_size).unwrap_or(u32::MAX),
            bytes_max: 0,
            continuation: None,
            reverse: options.reverse,
            keys_only: options.keys_only,
        };
        let first_key = match options.reverse {
            false => Cow::Borrowed(start.unwrap_or_default()),
            true => Cow::Owned(last_key_before(options.end.as_deref())),
        };
        self.read_page(&first_key, &body, options.page_size).await
    }

    /// Reads a page from the range of a key. The next one gets the same size.
    async fn read_page<'a>(
        &self,
        key: &'a [u8],
        body: &'a (dyn Fn(RequestId) -> RequestBody<'a> + Sync),
        page_size: usize,
    ) -> Result<Page, Error> {
        let request = Request {
            key: Some(key),
            body,
            kind: Kind::Read,
            take: page,
            deadline: self.deadline(),
        };
        let mut page = self.call(request).await?;
        if let Some(continuation) = &mut page.continuation {
            continuation.page_size = page_size;
        }
        Ok(page)
    }

    /// Reads the next page of a scan. A page is a snapshot within one range. It ends at the range's
    /// border; the next page begins there with a snapshot of its own, but for keys that were split off that
    /// range since the scan came to it: they are read at the same snapshot.
    ///
    /// # Errors
    /// See [`Error`]; [`crate::ErrorCode::SnapshotTooOld`] if the versions of its snapshot were
    /// collected.
    pub async fn scan_next(&self, continuation: Continuation) -> Result<Page, Error> {
        let Continuation { token, page_size } = &continuation;
        // Any node refuses a token that cannot be read.
        let first_key = continuation::Continuation::decode(token)
            .map(|rest| rest.first_key())
            .unwrap_or_default();
        let body = |_| RequestBody::Scan {
            start: None,
            end: None,
            rows_max: u32::try_from(*page_size).unwrap_or(u32::MAX),
            bytes_max: 0,
            continuation: Some(token),
            reverse: false,
            keys_only: false,
        };
        self.read_page(&first_key, &body, *page_size).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(options: impl Into<ScanOptions>) -> (Option<Bytes>, Option<Bytes>) {
        let options = options.into();
        (options.start, options.end)
    }

    #[test]
    fn ranges_are_intervals() {
        let key = |text: &'static str| Some(Bytes::from(text));
        assert_eq!(interval(..), (None, None));
        assert_eq!(interval("a".."b"), (key("a"), key("b")));
        assert_eq!(interval("a"..), (key("a"), None));
        assert_eq!(interval(..b"b"), (None, key("b")));
        assert_eq!(interval("a"..="b"), (key("a"), key("b\0")));
        assert_eq!(interval(..="b"), (None, key("b\0")));
        let bounds = (Bound::Excluded("a"), Bound::Included("b"));
        assert_eq!(interval(bounds), (key("a\0"), key("b\0")));
        let owned = String::from("a")..String::from("b");
        assert_eq!(interval(owned), (key("a"), key("b")));
    }

    #[test]
    fn a_prefix_ends_before_the_first_key_that_does_not_have_it() {
        let end = |prefix: &[u8]| ScanOptions::prefix(prefix).end;
        assert_eq!(end(b"user/"), Some(Bytes::from("user0")));
        assert_eq!(end(b"a\xff\xff"), Some(Bytes::from("b")));
        assert_eq!(end(b"\xff"), None);
        assert_eq!(end(b""), None);
    }
}
