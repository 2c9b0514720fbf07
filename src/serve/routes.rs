//! The paths of the server, and the answers of the short ones.
//!
//! *Runs on:* the thread `stall-serve`.
//!
//! Each page is rendered at most ten times a second, except for the short text of `/health/live`.

use super::profiles::Profiles;
use super::recording::{self, RecordingAnswers};
use crate::clock::{self, Nanos};
use crate::engine::{Target, View};
use crate::metrics::Exporter;
use crate::metrics::prometheus;
use crate::report::StallReport;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue};
use hyper::http::uri::Authority;
use hyper::{Method, Request, Response, StatusCode};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use parking_lot::Mutex;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// How long an answer is served again before it is rendered anew.
const FRESH: Duration = Duration::from_millis(100);

pub(super) const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

const INDEX: &str = "\
tokio-stall

/metrics             for Prometheus
/health/live         200, or 503 and why the program should be restarted
/stalls              stalls going on and recent ones, as JSON
/stalls/folded       stacks of stalls for a flame graph, by microseconds lost; ?by=samples
/stalls/flamegraph   the same as a picture; ?by=samples
/debug/pprof/stall   stalls for tools that read pprof, such as `go tool pprof`
/debug/recording     the last 30 s of all workers, for Perfetto; ?seconds=
";

/// The answers to all requests.
pub(super) struct Routes {
    view: View,
    /// Whether only programs of this machine can connect, a browser among them.
    is_loopback: bool,
    /// Exports to a recorder of the server's own, independent of the program's.
    exporter: Mutex<Exporter>,
    rendered: PrometheusHandle,
    metrics: CachedAnswer,
    stalls: CachedAnswer,
    profiles: Profiles,
    recordings: RecordingAnswers,
}

/// An answer, and the time at which it was rendered.
#[derive(Default)]
pub(super) struct CachedAnswer(Mutex<Option<(Nanos, Bytes)>>);

impl CachedAnswer {
    pub(super) fn get<T: Into<Bytes>>(&self, make: impl FnOnce() -> T) -> Bytes {
        let now = clock::now();
        let mut cached = self.0.lock();
        match &*cached {
            Some((at, text)) if now.since(*at) < FRESH => text.clone(),
            _ => {
                let text = make().into();
                *cached = Some((now, text.clone()));
                text
            }
        }
    }
}

/// The answer to `/stalls`.
#[derive(serde::Serialize)]
struct StallsAnswer {
    now: Vec<StallReport>,
    recent: Vec<StallReport>,
}

impl Routes {
    pub(super) fn new(view: View, is_loopback: bool) -> Routes {
        // The builder accepts the bounds of the list: the example of `configure` tests it.
        let builder = prometheus::configure(PrometheusBuilder::new()).unwrap_or_default();
        let recorder = builder.build_recorder();
        let rendered = recorder.handle();
        let routes = Routes {
            view,
            is_loopback,
            exporter: Mutex::new(Exporter::new(Target::Given(Arc::new(recorder)))),
            rendered,
            metrics: CachedAnswer::default(),
            stalls: CachedAnswer::default(),
            profiles: Profiles::new(),
            recordings: RecordingAnswers::default(),
        };
        // The first export is the beginning of all differences.
        routes.render_metrics();
        routes
    }

    pub(super) fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return method_not_allowed();
        }
        if self.is_loopback && !is_of_this_machine(request) {
            let text = "ask by the address, or by localhost\n";
            return response(StatusCode::MISDIRECTED_REQUEST, TEXT, text.into());
        }
        let query = request.uri().query();
        let ok = |kind, text| response(StatusCode::OK, kind, text);
        match (request.uri().path(), query) {
            ("/", _) => ok(TEXT, INDEX.into()),
            ("/metrics", _) => ok(PROMETHEUS, self.metrics.get(|| self.render_metrics())),
            ("/health/live", _) => self.health(),
            ("/stalls", _) => ok(JSON, self.stalls.get(|| self.render_stalls())),
            ("/stalls/folded", query) => self.profiles.folded(&self.view, query),
            ("/stalls/flamegraph", query) => self.profiles.flamegraph(&self.view, query),
            ("/debug/pprof/stall", _) => self.profiles.pprof(&self.view),
            ("/debug/recording", query) => match self.recordings.get(&self.view, query) {
                Some(recording) => ok(JSON, recording),
                None => response(StatusCode::BAD_REQUEST, TEXT, recording::USAGE.into()),
            },
            _ => response(StatusCode::NOT_FOUND, TEXT, INDEX.into()),
        }
    }

    fn health(&self) -> Response<Full<Bytes>> {
        match self.reason_to_restart() {
            None => response(StatusCode::OK, TEXT, "ok\n".into()),
            Some(why) => {
                let text = format!("{why}\n");
                response(StatusCode::SERVICE_UNAVAILABLE, TEXT, text.into())
            }
        }
    }

    fn render_metrics(&self) -> String {
        let mut exporter = self.exporter.lock();
        self.export(&mut exporter);
        self.rendered.render()
    }

    fn export(&self, exporter: &mut Exporter) {
        let shared = &self.view.shared;
        exporter.export(shared, |runtime| self.view.watches(runtime), true);
    }

    /// Takes in all new figures. The recorder keeps each value until a scrape or this.
    pub(super) fn keep_up(&self) {
        let mut exporter = self.exporter.lock();
        self.export(&mut exporter);
        self.rendered.run_upkeep();
    }

    /// The metrics as of the last export.
    #[cfg(test)]
    pub(super) fn rendered_so_far(&self) -> String {
        self.rendered.render()
    }

    fn render_stalls(&self) -> String {
        let stalls = StallsAnswer {
            now: self.view.stalled_now(),
            recent: self.view.recent(),
        };
        // Plain data always serializes.
        serde_json::to_string(&stalls).unwrap_or_default()
    }

    /// Why the program should be restarted, if it should.
    ///
    /// It reads the stalls going on without their names, so it answers while the reporter is held
    /// up.
    fn reason_to_restart(&self) -> Option<String> {
        let liveness = self.view.watch.settings.liveness;
        let now = clock::now();
        let live = self.view.shared.live.lock().clone();
        let runtimes = self.view.runtimes();
        let reasons = runtimes.iter().filter_map(|runtime| {
            let held: Vec<(usize, Duration)> = live
                .iter()
                .filter(|live| live.runtime.id == runtime.id)
                .filter_map(|live| Some((live.worker, live.proven_age(now)?)))
                .collect();
            let workers = runtime.metrics.num_workers();
            let of_workers = liveness.verdict(&runtime.name, workers, &held);
            of_workers.or_else(|| {
                let waited = now.since(runtime.stats.probe_sent_at()?);
                liveness.verdict_on_pool(&runtime.name, waited)
            })
        });
        let reasons: Vec<String> = reasons.collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }
}

fn method_not_allowed() -> Response<Full<Bytes>> {
    let text = "only GET and HEAD\n";
    let mut response = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, text.into());
    let allow = HeaderValue::from_static("GET, HEAD");
    response.headers_mut().insert(ALLOW, allow);
    response
}

/// Whether the request names this machine. A page from elsewhere can have its own name lead here,
/// and a browser would let it read the answers. It cannot ask by an address, or by `localhost`.
fn is_of_this_machine(request: &Request<Incoming>) -> bool {
    let Some(host) = request.headers().get(HOST) else {
        return true;
    };
    let authority = host
        .to_str()
        .ok()
        .and_then(|host| host.parse::<Authority>().ok());
    authority.is_some_and(|authority| {
        let host = authority.host().trim_matches(['[', ']']);
        host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok()
    })
}

pub(super) fn response(
    status: StatusCode,
    kind: &'static str,
    body: Bytes,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
