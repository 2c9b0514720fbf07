//! `/stalls/folded`, `/stalls/flamegraph` and `/debug/pprof/stall`: one profile in three formats.
//!
//! *Runs on:* the thread `stall-serve`.
//!
//! Each is rendered at most ten times a second. The flame graph has a script, and its policy lets
//! this one run and no other: a name that came through as code would not run.

use super::routes::{CachedAnswer, TEXT, response};
use crate::engine::View;
use crate::report::{FoldedBy, draw};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{
    CONTENT_DISPOSITION, CONTENT_SECURITY_POLICY, HeaderValue, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Response, StatusCode};
use sha2::{Digest as _, Sha256};
use std::path::Path;

const SVG: &str = "image/svg+xml; charset=utf-8";
/// The file is compressed by its format, not by the transfer.
const PPROF: &str = "application/octet-stream";

/// The profiles, each as it was last rendered.
pub(super) struct Profiles {
    by_time: CachedAnswer,
    by_samples: CachedAnswer,
    graph_by_time: CachedAnswer,
    graph_by_samples: CachedAnswer,
    pprof: CachedAnswer,
    title: String,
    policy: HeaderValue,
}

impl Profiles {
    pub(super) fn new() -> Profiles {
        Profiles {
            by_time: CachedAnswer::default(),
            by_samples: CachedAnswer::default(),
            graph_by_time: CachedAnswer::default(),
            graph_by_samples: CachedAnswer::default(),
            pprof: CachedAnswer::default(),
            title: format!("{}: time lost to stalls", program()),
            policy: policy(),
        }
    }

    /// Stacks as lines.
    pub(super) fn folded(&self, view: &View, query: Option<&str>) -> Response<Full<Bytes>> {
        let Some(by) = unit(query) else {
            return unknown_unit();
        };
        let cached = match by {
            FoldedBy::Microseconds => &self.by_time,
            FoldedBy::Samples => &self.by_samples,
        };
        let text = cached.get(|| view.profile().folded(by));
        response(StatusCode::OK, TEXT, text)
    }

    /// Stacks as a picture.
    pub(super) fn flamegraph(&self, view: &View, query: Option<&str>) -> Response<Full<Bytes>> {
        let Some(by) = unit(query) else {
            return unknown_unit();
        };
        let cached = match by {
            FoldedBy::Microseconds => &self.graph_by_time,
            FoldedBy::Samples => &self.graph_by_samples,
        };
        let svg = cached.get(|| view.profile().flamegraph(&self.title, by));
        let mut response = response(StatusCode::OK, SVG, svg);
        let headers = response.headers_mut();
        headers.insert(CONTENT_SECURITY_POLICY, self.policy.clone());
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    }

    /// Stacks for tools that read pprof.
    pub(super) fn pprof(&self, view: &View) -> Response<Full<Bytes>> {
        let file = self.pprof.get(|| view.profile().pprof());
        let mut response = response(StatusCode::OK, PPROF, file);
        let headers = response.headers_mut();
        let name = HeaderValue::from_static("attachment; filename=\"stall.pb.gz\"");
        headers.insert(CONTENT_DISPOSITION, name);
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    }
}

/// The unit that a query asks for. Other parameters are ignored: the script of a flame graph keeps
/// its zoom in some.
fn unit(query: Option<&str>) -> Option<FoldedBy> {
    let mut parameters = query.unwrap_or_default().split('&');
    match parameters.find_map(|parameter| parameter.strip_prefix("by=")) {
        None | Some("time") => Some(FoldedBy::Microseconds),
        Some("samples") => Some(FoldedBy::Samples),
        Some(_) => None,
    }
}

fn unknown_unit() -> Response<Full<Bytes>> {
    let usage = "by=time (the default) or by=samples\n";
    response(StatusCode::BAD_REQUEST, TEXT, usage.into())
}

/// The name of the program's file.
fn program() -> String {
    let path = std::env::current_exe().unwrap_or_default();
    let name = path.file_name().unwrap_or(Path::new("program").as_os_str());
    name.to_string_lossy().into_owned()
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

    #[test]
    fn a_query_may_have_other_parameters() {
        assert_eq!(unit(None), Some(FoldedBy::Microseconds));
        assert_eq!(unit(Some("x=12&by=samples&y=5")), Some(FoldedBy::Samples));
        assert_eq!(unit(Some("s=fetch")), Some(FoldedBy::Microseconds));
        assert_eq!(unit(Some("by=colour")), None);
    }
}
