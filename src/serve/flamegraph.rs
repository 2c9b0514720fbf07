//! `/stalls/flamegraph`: the time lost as a picture, with the feature `flamegraph`.
//!
//! *Runs on:* the thread `stall-serve`.
//!
//! It is rendered at most ten times a second. The picture has a script, and its policy lets this
//! one run and no other: a name that came through as code would not run.

use super::routes::{Answer, CachedAnswer, response};
use super::{profiles, program};
use crate::engine::View;
use crate::report::{FoldedBy, draw};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::StatusCode;
use hyper::header::{CONTENT_SECURITY_POLICY, HeaderValue};
use sha2::{Digest as _, Sha256};

const SVG: &str = "image/svg+xml; charset=utf-8";

/// The picture, as it was last rendered by each unit.
pub(super) struct FlameGraph {
    by_time: CachedAnswer,
    by_samples: CachedAnswer,
    title: String,
    policy: HeaderValue,
}

impl FlameGraph {
    pub(super) fn new() -> FlameGraph {
        FlameGraph {
            by_time: CachedAnswer::default(),
            by_samples: CachedAnswer::default(),
            title: format!("{}: time lost to stalls", program()),
            policy: policy(),
        }
    }

    /// Stacks as a picture.
    pub(super) fn get(&self, view: &View, query: Option<&str>) -> Answer {
        let Some(by) = profiles::unit(query) else {
            return profiles::unknown_unit();
        };
        let cached = match by {
            FoldedBy::Microseconds => &self.by_time,
            FoldedBy::Samples => &self.by_samples,
        };
        let svg = cached.get(|| view.profile().flamegraph(&self.title, by));
        let mut response = response(StatusCode::OK, SVG, svg);
        let policy = self.policy.clone();
        response
            .headers_mut()
            .insert(CONTENT_SECURITY_POLICY, policy);
        response
    }
}

/// The policy of the flame graph: its own script and style, and nothing from elsewhere.
fn policy() -> HeaderValue {
    // The script is the same in all pictures. It is taken from one without names of the program.
    let picture = draw("", "µs", "none 1\n").unwrap_or_default();
    let script = hash(&script(&picture));
    let start = hash("init(evt)");
    let text = format!(
        "default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-hashes' '{script}' '{start}'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    );
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("default-src 'none'"))
}

/// The code of the first script, as a browser reads it.
fn script(svg: &str) -> String {
    let after = svg.split_once("<script").map_or("", |(_, after)| after);
    let inside = after
        .split_once("</script>")
        .map_or("", |(inside, _)| inside);
    let code = inside.split_once('>').map_or("", |(_, code)| code);
    code.replace("<![CDATA[", "").replace("]]>", "")
}

fn hash(code: &str) -> String {
    let digest = Sha256::digest(code.as_bytes());
    format!("sha256-{}", BASE64_STANDARD.encode(digest))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_policy_names_the_script_of_every_picture() {
        let other = draw("<b>", "samples", "api;a 1\napi;b 2\n").unwrap();
        let policy = policy();
        let policy = policy.to_str().unwrap();
        assert!(policy.contains(&hash(&script(&other))), "{policy}");
        assert!(script(&other).contains("function init(evt)"));
        assert!(!policy.contains(&hash("")), "{policy}");
        // As computed by another program: `printf 'init(evt)' | openssl dgst -sha256 -binary`.
        let start = "sha256-WiAVSnuYekflqQvM3Bgx4QYmF4g+iml28eRUaqE8Qeo=";
        assert!(policy.contains(start), "{policy}");
    }
}
