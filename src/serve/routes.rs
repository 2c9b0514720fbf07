//! What is served: `/metrics`, `/health/live`, `/stalls`, `/stalls/folded`.
//!
//! *Runs on:* the server's thread.
//! *Here:* texts that are made at most ten times a second each, however often they are asked for.

use crate::clock::{self, Nanos};
use crate::engine::{Target, View};
use crate::metrics::Exporter;
use crate::metrics::prometheus;
use crate::report::{Certainty, FoldedBy, StallReport};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// For how long an answer stays good.
const FRESH: Duration = Duration::from_millis(100);

const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

const INDEX: &str = "\
tokio-stall

/metrics         for Prometheus
/health/live     200, or 503 and why the program should be restarted
/stalls          stalls going on and recent ones, as JSON
/stalls/folded   stacks of stalls for a flame graph, by microseconds lost; ?by=samples
";

pub(super) struct Routes {
    view: View,
    /// Our own metrics, whatever recorder the program has.
    exporter: Mutex<Exporter>,
    rendered: PrometheusHandle,
    metrics: Kept,
    stalls: Kept,
    by_time: Kept,
    by_samples: Kept,
}

/// An answer, and when it was made.
#[derive(Default)]
struct Kept(Mutex<Option<(Nanos, Bytes)>>);

impl Kept {
    fn get(&self, make: impl FnOnce() -> String) -> Bytes {
        let now = clock::now();
        let mut kept = self.0.lock();
        match &*kept {
            Some((at, text)) if now.since(*at) < FRESH => text.clone(),
            _ => {
                let text = Bytes::from(make());
                *kept = Some((now, text.clone()));
                text
            }
        }
    }
}

/// What `/stalls` says.
#[derive(serde::Serialize)]
struct Stalls {
    now: Vec<StallReport>,
    recent: Vec<StallReport>,
}

impl Routes {
    pub(super) fn new(view: View) -> Routes {
        // Bounds that a builder refuses are not in our list: its own test configures one.
        let builder = prometheus::configure(PrometheusBuilder::new()).unwrap_or_default();
        let recorder = builder.build_recorder();
        let rendered = recorder.handle();
        let routes = Routes {
            view,
            exporter: Mutex::new(Exporter::new(Target::Given(Arc::new(recorder)))),
            rendered,
            metrics: Kept::default(),
            stalls: Kept::default(),
            by_time: Kept::default(),
            by_samples: Kept::default(),
        };
        // From here on, differences have a beginning.
        routes.render_metrics();
        routes
    }

    pub(super) fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = response(
                StatusCode::METHOD_NOT_ALLOWED,
                TEXT,
                "only GET and HEAD\n".into(),
            );
            let allow = HeaderValue::from_static("GET, HEAD");
            response.headers_mut().insert(ALLOW, allow);
            return response;
        }
        let query = request.uri().query();
        let ok = |kind, text| response(StatusCode::OK, kind, text);
        match (request.uri().path(), query) {
            ("/", _) => ok(TEXT, INDEX.into()),
            ("/metrics", _) => ok(PROMETHEUS, self.metrics.get(|| self.render_metrics())),
            ("/health/live", _) => match self.reason_to_restart() {
                None => ok(TEXT, "ok\n".into()),
                Some(why) => response(
                    StatusCode::SERVICE_UNAVAILABLE,
                    TEXT,
                    format!("{why}\n").into(),
                ),
            },
            ("/stalls", _) => ok(JSON, self.stalls.get(|| self.render_stalls())),
            ("/stalls/folded", None | Some("by=time")) => ok(
                TEXT,
                self.by_time
                    .get(|| self.view.profile().folded(FoldedBy::Microseconds)),
            ),
            ("/stalls/folded", Some("by=samples")) => ok(
                TEXT,
                self.by_samples
                    .get(|| self.view.profile().folded(FoldedBy::Samples)),
            ),
            ("/stalls/folded", Some(_)) => response(
                StatusCode::BAD_REQUEST,
                TEXT,
                "by=time (the default) or by=samples\n".into(),
            ),
            _ => response(StatusCode::NOT_FOUND, TEXT, INDEX.into()),
        }
    }

    fn render_metrics(&self) -> String {
        let shared = &self.view.shared;
        let mut exporter = self.exporter.lock();
        exporter.export(shared, |runtime| self.view.watches(runtime), true);
        self.rendered.render()
    }

    fn render_stalls(&self) -> String {
        let stalls = Stalls {
            now: self.view.stalled_now(),
            recent: self.view.recent(),
        };
        // Plain data always has a text.
        serde_json::to_string(&stalls).unwrap_or_default()
    }

    /// By the stalls going on, without their names: this must answer when all else is stuck.
    fn reason_to_restart(&self) -> Option<String> {
        let liveness = self.view.watch.settings.liveness;
        let now = clock::now();
        let live = self.view.shared.live.lock().clone();
        let runtimes = self.view.runtimes();
        let reasons = runtimes.iter().filter_map(|runtime| {
            let held: Vec<(usize, Duration)> = live
                .iter()
                .filter(|live| live.runtime.id == runtime.id)
                .filter(|live| live.stall.certainty == Certainty::Certain)
                .map(|live| (live.worker, now.since(live.stall.since)))
                .collect();
            liveness.verdict(&runtime.name, runtime.metrics.num_workers(), &held)
        });
        let reasons: Vec<String> = reasons.collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }
}

fn response(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
