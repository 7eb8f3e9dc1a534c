//! Which hosts and origins the pages are served for.
//!
//! A browser on this machine or in its network reaches the pages, whatever site it shows. A site can
//! name itself by a host name that leads here (DNS rebinding), or send requests from its own pages.
//! So a request must name, in `Host`, an address or a name of this node, and a request from a page
//! must come from the same host, or from one that the settings name. Pure.

use std::net::IpAddr;

use hyper::header::{HOST, HeaderMap, ORIGIN};
use hyper::{StatusCode, Uri, Version};

use crate::config::Http;

/// Why a request is not served.
pub(super) type Foreign = (StatusCode, String);

/// Whether the request's host and origin are served.
///
/// # Errors
/// One of them is foreign, or there is not exactly one host.
pub(super) fn check(
    allowed: &Http,
    (uri, version): (&Uri, Version),
    headers: &HeaderMap,
) -> Result<(), Foreign> {
    let mut named = headers.get_all(HOST).iter();
    let header = named.next();
    if named.next().is_some() || (header.is_none() && version == Version::HTTP_11) {
        let message = "a request names its host once, in the header Host";
        return Err((StatusCode::BAD_REQUEST, message.to_owned()));
    }
    let header = header.map(|host| host.to_str().unwrap_or("?"));
    // A whole address in the first line stands above the header.
    let authority = uri.authority().map(|authority| authority.as_str());
    let authority = authority.or(header);
    if let Some(authority) = authority.filter(|authority| !is_known(allowed, authority)) {
        let message = format!(
            "the host {authority:?} is not one of this node's names; --http-hosts names more"
        );
        return Err((StatusCode::MISDIRECTED_REQUEST, message));
    }
    let origins = headers.get_all(ORIGIN).iter();
    for origin in origins.map(|origin| origin.to_str().unwrap_or("?")) {
        let at = origin.split_once("://").map(|(_, authority)| authority);
        let is_same = at
            .zip(authority)
            .is_some_and(|(a, b)| a.eq_ignore_ascii_case(b));
        let mut named = allowed.origins.iter();
        if !is_same && !named.any(|named| named.eq_ignore_ascii_case(origin)) {
            let message = format!(
                "the origin {origin:?} is foreign; --http-origins names those that are allowed"
            );
            return Err((StatusCode::FORBIDDEN, message));
        }
    }
    Ok(())
}

/// Whether a host, with or without a port, stands for this node. No site can have a number as its
/// name, and every machine keeps `localhost` to itself.
fn is_known(allowed: &Http, authority: &str) -> bool {
    let host = match authority
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    {
        Some((host, _)) => host,
        None => authority.split(':').next().unwrap_or_default(),
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    host.parse::<IpAddr>().is_ok()
        || host.eq_ignore_ascii_case("localhost")
        || allowed
            .hosts
            .iter()
            .any(|known| known.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(uri: &str, version: Version, headers: &[(hyper::header::HeaderName, &str)]) -> u16 {
        let allowed = Http {
            address: ([127, 0, 0, 1], 7480).into(),
            hosts: vec!["db1.example".to_owned()],
            origins: vec!["https://console.example".to_owned()],
            drain_wait: std::time::Duration::ZERO,
        };
        let uri: Uri = uri.parse().expect("an address");
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, value.parse().expect("a value"));
        }
        let checked = check(&allowed, (&uri, version), &map);
        checked.map_or_else(|(status, _)| status.as_u16(), |()| 200)
    }

    #[test]
    fn only_hosts_of_this_node_are_served() {
        let of = |host: &str| status("/metrics", Version::HTTP_11, &[(HOST, host)]);
        for known in [
            "127.0.0.1:7480",
            "10.0.0.1",
            "[::1]:7480",
            "[::1]",
            "localhost:7480",
            "LOCALHOST",
            "db1.example:7480",
            "DB1.example.",
        ] {
            assert_eq!(of(known), 200, "{known}");
        }
        for foreign in [
            "evil.example",
            "db1.example.evil",
            "localhost.evil:7480",
            "x",
            "[x]",
            "",
        ] {
            assert_eq!(of(foreign), 421, "{foreign}");
        }
        assert_eq!(status("/", Version::HTTP_11, &[]), 400);
        assert_eq!(status("/", Version::HTTP_10, &[]), 200);
        let twice = [(HOST, "localhost"), (HOST, "localhost")];
        assert_eq!(status("/", Version::HTTP_11, &twice), 400);
        let whole = |uri| status(uri, Version::HTTP_11, &[(HOST, "localhost")]);
        assert_eq!(whole("http://evil.example/livez"), 421);
        assert_eq!(whole("http://db1.example/livez"), 200);
    }

    #[test]
    fn pages_of_other_sites_may_not_ask() {
        let of = |origin: &str| {
            let headers = [(HOST, "localhost:7480"), (ORIGIN, origin)];
            status("/api/v1/batch", Version::HTTP_11, &headers)
        };
        assert_eq!(of("http://localhost:7480"), 200);
        assert_eq!(of("https://console.example"), 200);
        for foreign in [
            "http://localhost:3000",
            "http://127.0.0.1:7480",
            "http://console.example",
            "https://evil.example",
            "null",
        ] {
            assert_eq!(of(foreign), 403, "{foreign}");
        }
    }
}
