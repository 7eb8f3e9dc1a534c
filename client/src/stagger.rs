//! Staggered attempts: several ways to the same result, of which the next one starts while those before are
//! still silent. So a silent address does not use up the time of the others.

use std::time::Duration;

use tokio::task::JoinSet;

/// Tries one way after the other: each begins when the one before has failed, or has been silent
/// for `delay`. Calls `overtaken` with the number of a way that was silent. The first success
/// counts, and ends the other ways.
///
/// # Errors
/// The reason of each way, if all have failed.
pub async fn first_of<T, E, F>(
    ways: Vec<F>,
    delay: Duration,
    overtaken: impl Fn(usize),
) -> Result<T, Vec<E>>
where
    F: Future<Output = Result<T, E>> + Send + 'static,
    T: Send + 'static,
    E: From<String> + Send + 'static,
{
    let mut ways = ways.into_iter().enumerate().peekable();
    let mut tried = JoinSet::new();
    let mut failures = Vec::new();
    while let Some((number, way)) = ways.next() {
        tried.spawn(way);
        let is_last = ways.peek().is_none();
        loop {
            let ended = tried.join_next();
            let ended = if is_last {
                ended.await
            } else {
                match tokio::time::timeout(delay, ended).await {
                    Ok(ended) => ended,
                    Err(_) => {
                        overtaken(number);
                        break;
                    }
                }
            };
            match ended {
                Some(Ok(Ok(found))) => return Ok(found),
                Some(Ok(Err(failure))) => failures.push(failure),
                Some(Err(ended)) => failures.push(ended.to_string().into()),
                None => break,
            }
            // After a failure the next way begins at once; after the last, all that still run are
            // awaited.
            if !is_last {
                break;
            }
        }
    }
    Err(failures)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::time::Instant;

    const DELAY: Duration = Duration::from_millis(20);

    async fn way(after_ms: u64, result: Result<u32, &str>) -> Result<u32, String> {
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        result.map_err(str::to_owned)
    }

    #[tokio::test]
    async fn a_silent_way_is_overtaken() {
        let overtaken = Mutex::new(Vec::new());
        let note = |number| overtaken.lock().expect("unpoisoned").push(number);
        let begun = Instant::now();
        let ways = vec![way(60_000, Ok(1)), way(60_000, Ok(2)), way(0, Ok(3))];
        assert_eq!(first_of(ways, DELAY, note).await, Ok(3));
        assert!(begun.elapsed() < Duration::from_secs(10));
        assert_eq!(*overtaken.lock().expect("unpoisoned"), [0, 1]);
    }

    #[tokio::test]
    async fn a_slow_way_may_still_be_the_first() {
        let ways = vec![way(60, Ok(1)), way(60_000, Ok(2))];
        assert_eq!(first_of(ways, DELAY, |_| ()).await, Ok(1));
    }

    #[tokio::test]
    async fn every_failure_is_told() {
        let ways = vec![way(50, Err("a")), way(0, Err("b")), way(0, Err("c"))];
        let failures = first_of(ways, DELAY, |_| ()).await.expect_err("none");
        assert_eq!(failures, ["b", "c", "a"]);
        let none: Vec<std::future::Ready<Result<u32, String>>> = Vec::new();
        assert_eq!(first_of(none, DELAY, |_| ()).await, Err(Vec::new()));
    }
}
