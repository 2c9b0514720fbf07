//! The page at `/`: one document, which has its style and its script in it.
//!
//! *Runs on:* the thread `stall-serve`.
//!
//! The Content-Security-Policy allows the script and the style by their digests, connections to
//! this server, and nothing else. All names of the program come by `/events` and are shown as text.

use super::routes::{self, Answer};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, CONTENT_SECURITY_POLICY, HeaderMap, HeaderValue, VARY};
use sha2::{Digest as _, Sha256};
use std::sync::OnceLock;

const HTML: &str = include_str!("page.html");
const CSS: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// The lines of the document in whose places style and script are put.
const STYLE_HERE: &str = "<style></style>";
const SCRIPT_HERE: &str = "<script type=\"module\"></script>";

/// The document, and the policy for it.
struct Document {
    text: Bytes,
    policy: HeaderValue,
}

/// Whether the client is a browser that shows a document.
pub(super) fn is_wanted(headers: &HeaderMap) -> bool {
    let mut accepts = headers.get_all(ACCEPT).iter();
    accepts.any(|accept| {
        accept
            .to_str()
            .is_ok_and(|accept| accept.contains("text/html"))
    })
}

pub(super) fn answer() -> Answer {
    static DOCUMENT: OnceLock<Document> = OnceLock::new();
    let document = DOCUMENT.get_or_init(Document::new);
    let text = document.text.clone();
    let mut response = routes::response(StatusCode::OK, "text/html; charset=utf-8", text);
    let policy = document.policy.clone();
    response
        .headers_mut()
        .insert(CONTENT_SECURITY_POLICY, policy);
    routes::with_header(response, VARY, "Accept")
}

impl Document {
    fn new() -> Document {
        let with = |place: &str, content: &str| place.replace("></", &format!(">{content}</"));
        let text = HTML.replace(STYLE_HERE, &with(STYLE_HERE, CSS));
        let text = text.replace(SCRIPT_HERE, &with(SCRIPT_HERE, SCRIPT));
        let policy = format!(
            "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; \
             connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
             frame-ancestors 'none'",
            digest(SCRIPT),
            digest(CSS)
        );
        Document {
            text: Bytes::from(text),
            // Its characters are those above and of base 64.
            policy: HeaderValue::from_str(&policy)
                .unwrap_or(HeaderValue::from_static("default-src 'none'")),
        }
    }
}

fn digest(text: &str) -> String {
    BASE64_STANDARD.encode(Sha256::digest(text))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_small_and_complete() {
        let document = Document::new();
        let text = std::str::from_utf8(&document.text).unwrap();
        assert!(text.len() < 60 << 10, "{} bytes", text.len());
        assert!(text.contains(CSS) && text.contains(SCRIPT));
        // The lone addresses in it are those of names in XML.
        for address in text.match_indices("://") {
            let before = &text[..address.0];
            let after = &text[address.0..];
            assert!(before.ends_with("http"), "{}", &after[..40]);
            assert!(
                after.starts_with("://www.w3.org/2000/svg"),
                "{}",
                &after[..40]
            );
        }
    }

    #[test]
    fn the_policy_names_the_digests() {
        let policy = Document::new().policy;
        let policy = policy.to_str().unwrap();
        assert!(
            policy.starts_with("default-src 'none'; script-src 'sha256-"),
            "{policy}"
        );
        assert!(!policy.contains("unsafe"), "{policy}");
        // "abc", from the standard's example.
        assert_eq!(
            digest("abc"),
            "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0="
        );
    }

    #[test]
    fn the_script_makes_no_markup_of_data() {
        for word in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
        ] {
            assert!(!SCRIPT.contains(word), "{word}");
        }
        assert!(SCRIPT.contains("textContent"));
    }

    #[test]
    fn the_page_is_for_browsers() {
        let accepts = |value: &'static str| {
            let headers = [(ACCEPT, HeaderValue::from_static(value))];
            is_wanted(&headers.into_iter().collect())
        };
        assert!(accepts("text/html,application/xhtml+xml,*/*;q=0.8"));
        assert!(!accepts("*/*"));
        assert!(!is_wanted(&HeaderMap::new()));
    }
}
