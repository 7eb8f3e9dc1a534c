//! The page at `/`: what this node and its cluster are doing, for people.
//!
//! Plain HTML, a style sheet, one JavaScript module and the chart library uPlot, all of them part of
//! the binary: the page loads nothing from anywhere else, and its content policy forbids that. What
//! changes comes by one stream of events ([`stream`]). The page changes nothing.
//!
//! A node shows what it measures itself, and what the cluster's manager reports of all nodes and
//! ranges. For what only another node measures, the page links to that node's own page.
//!
//! Keys, names and messages are text of others: the script sets them as text and never as HTML. Runs on
//! the control thread.

mod second;
pub(super) mod stream;
mod view;

use bytes::Bytes;
use hyper::Response;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};

use super::body::Text;

/// What the page may load and connect to: its own origin. No inline script and no inline style.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

/// A file of the page.
#[derive(Clone, Copy)]
pub(super) struct File {
    path: &'static str,
    kind: &'static str,
    text: &'static str,
}

const FILES: [File; 6] = [
    File {
        path: "/",
        kind: "text/html; charset=utf-8",
        text: include_str!("index.html"),
    },
    File {
        path: "/style.css",
        kind: STYLE,
        text: include_str!("style.css"),
    },
    File {
        path: "/page.js",
        kind: SCRIPT,
        text: include_str!("page.js"),
    },
    File {
        path: "/icon.svg",
        kind: "image/svg+xml",
        text: include_str!("icon.svg"),
    },
    File {
        path: "/vendor/uPlot.iife.min.js",
        kind: SCRIPT,
        text: include_str!("vendor/uPlot.iife.min.js"),
    },
    File {
        path: "/vendor/uPlot.min.css",
        kind: STYLE,
        text: include_str!("vendor/uPlot.min.css"),
    },
];

/// The file of the page with this path.
pub(super) fn file(path: &str) -> Option<File> {
    FILES.into_iter().find(|file| file.path == path)
}

impl File {
    /// The response to a request for the file.
    pub(super) fn response(self) -> Response<Text> {
        let mut response = Response::new(Text::new(Bytes::from_static(self.text.as_bytes())));
        let headers = response.headers_mut();
        for (name, value) in [
            (CONTENT_TYPE, self.kind),
            (CONTENT_SECURITY_POLICY, POLICY),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (REFERRER_POLICY, "no-referrer"),
            // Another release has other files under the same names.
            (CACHE_CONTROL, "no-cache"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;

    /// The most bytes that a browser loads for the page.
    const BYTES_MAX: usize = 200 << 10;

    #[test]
    fn the_page_is_small_and_complete() {
        let bytes: usize = FILES.iter().map(|file| file.text.len()).sum();
        assert!(bytes <= BYTES_MAX, "{bytes} bytes");
        let index = file("/").expect("the page").text;
        for other in FILES.iter().filter(|file| file.path != "/") {
            let name = other.path.trim_start_matches('/');
            assert!(index.contains(&format!("\"{name}\"")), "{name} is not used");
        }
        assert!(file("/index.html").is_none() && file("/../mod.rs").is_none());
    }

    #[test]
    fn the_vendored_library_is_the_one_that_was_looked_at() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin/page/vendor");
        let checked = Command::new("sha256sum")
            .args(["--check", "--strict", "--quiet", "SHA256SUMS"])
            .current_dir(folder)
            .output()
            .expect("sha256sum is part of coreutils");
        let said = String::from_utf8_lossy(&checked.stdout);
        assert!(checked.status.success(), "{said}");
    }

    #[test]
    fn the_policy_allows_nothing_inline_and_nothing_foreign() {
        let headers = file("/").expect("the page").response().headers().clone();
        let policy = headers[CONTENT_SECURITY_POLICY].to_str().expect("text");
        for word in ["-inline", "-eval", "http:", "https:", "data:", "*"] {
            assert!(!policy.contains(word), "{word} in {policy}");
        }
        let index = file("/").expect("the page").text;
        for word in [
            "<style",
            " style=",
            " onclick=",
            " onload=",
            "://",
            "<script>",
        ] {
            assert!(!index.contains(word), "{word} in the page");
        }
        let script = file("/page.js").expect("the script").text;
        for word in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "DOMParser",
        ] {
            assert!(!script.contains(word), "{word} in the script");
        }
        for file in FILES {
            let headers = file.response().headers().clone();
            assert_eq!(headers[CONTENT_TYPE], file.kind, "{}", file.path);
            assert_eq!(headers[X_CONTENT_TYPE_OPTIONS], "nosniff", "{}", file.path);
        }
    }
}
