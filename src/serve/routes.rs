//! The paths of the server, and the answers of the short ones.
//!
//! *Runs on:* the thread `stall-serve`.
//!
//! Each answer is rendered at most ten times a second, except for the short text of `/health/live`.

use super::access::{Access, Admission};
use super::connections::Connection;
use super::events::{EventStream, Events};
#[cfg(feature = "flamegraph")]
use super::flamegraph::FlameGraph;
use super::page;
use super::profiles::Profiles;
use super::recording::{self, RecordingAnswers};
use super::stalls::StallAnswers;
use crate::clock::{self, Nanos};
use crate::engine::{Coverage, Target, View};
use crate::metrics::{Exporter, LAST_TICK, prometheus};
use http_body_util::{Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// How long an answer is served again before it is rendered anew.
const FRESH: Duration = Duration::from_millis(100);
/// The most exports in a row, of 16,384 values of each series.
const PARTS: usize = 256;

pub(super) const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
pub(super) const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";

/// The body of an answer: a whole one, or the news of an open page.
pub(super) type Answer = Response<Either<Full<Bytes>, EventStream>>;

const INDEX: &str = "\
tokio-stall

/                    this text, or in a browser a page that shows stalls as they happen
/events              the news of that page, as server-sent events
/metrics             for Prometheus
/health/live         200, or 503 and why the program should be restarted
/stalls              stalls going on and recent ones, as JSON; ?stacks=all
/stalls/sites        the sites that took most time, a line each
/stalls/folded       stacks of stalls for a flame graph, by microseconds lost; ?by=samples
/stalls/flamegraph   the same as a picture, with the feature `flamegraph`; ?by=samples
/debug/pprof/stall   stalls for tools that read pprof, such as `go tool pprof`
/debug/recording     the last 30 s of all workers, for Perfetto; ?seconds=
";

/// The answers to all requests.
pub(super) struct Routes {
    view: View,
    access: Access,
    pub(super) events: Events,
    /// Exports to a recorder of the server's own, independent of the program's.
    exporter: Mutex<Exporter>,
    rendered: PrometheusHandle,
    metrics: CachedAnswer,
    stalls: StallAnswers,
    profiles: Profiles,
    #[cfg(feature = "flamegraph")]
    flamegraph: FlameGraph,
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
                // To render it may take longer than it stays fresh, and others wait for it.
                *cached = Some((clock::now(), text.clone()));
                text
            }
        }
    }
}

impl Routes {
    pub(super) fn new(view: View, access: Access) -> Routes {
        // The builder accepts the bounds of the list: the example of `configure` tests it.
        let builder = prometheus::configure(PrometheusBuilder::new()).unwrap_or_default();
        let recorder = builder.build_recorder();
        let rendered = recorder.handle();
        let routes = Routes {
            events: Events::new(view.clone()),
            view,
            access,
            exporter: Mutex::new(Exporter::new(Target::Given(Arc::new(recorder)))),
            rendered,
            metrics: CachedAnswer::default(),
            stalls: StallAnswers::default(),
            profiles: Profiles::default(),
            #[cfg(feature = "flamegraph")]
            flamegraph: FlameGraph::new(),
            recordings: RecordingAnswers::default(),
        };
        // The first export is the beginning of all differences.
        routes.render_metrics();
        routes
    }

    pub(super) fn answer(
        &self,
        request: &Request<Incoming>,
        connection: &Arc<Connection>,
    ) -> Answer {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return method_not_allowed();
        }
        match self.access.check(request.uri(), request.headers()) {
            Admission::Welcome => self.answer_to_welcome(request, connection),
            Admission::SetCookie(cookie) => set_cookie(&cookie),
            Admission::Refused(status, why) => refused(status, why),
        }
    }

    fn answer_to_welcome(
        &self,
        request: &Request<Incoming>,
        connection: &Arc<Connection>,
    ) -> Answer {
        if self.view.watch.is_off() {
            return answer_of_none(request.uri().path());
        }
        let query = request.uri().query();
        let ok = |kind, text| response(StatusCode::OK, kind, text);
        match (request.uri().path(), query) {
            ("/", _) if page::is_wanted(request.headers()) => page::answer(),
            ("/", _) => ok(TEXT, self.index()),
            ("/events", _) => self.events(request.method(), connection),
            ("/metrics", _) => ok(PROMETHEUS, self.metrics.get(|| self.render_metrics())),
            ("/health/live", _) => self.health(),
            ("/stalls", query) => self.stalls.get(&self.view, query),
            ("/stalls/sites", _) => self.profiles.sites(&self.view),
            ("/stalls/folded", query) => self.profiles.folded(&self.view, query),
            #[cfg(feature = "flamegraph")]
            ("/stalls/flamegraph", query) => self.flamegraph.get(&self.view, query),
            ("/debug/pprof/stall", _) => self.profiles.pprof(&self.view),
            ("/debug/recording", query) => match self.recordings.get(&self.view, query) {
                Some(recording) => ok(JSON, recording),
                None => response(StatusCode::BAD_REQUEST, TEXT, recording::USAGE.into()),
            },
            _ => response(StatusCode::NOT_FOUND, TEXT, INDEX.into()),
        }
    }

    fn index(&self) -> Bytes {
        format!("{INDEX}\n{}", self.events.figures()).into()
    }

    /// A HEAD asks whether there is room for another page, and takes none.
    fn events(&self, method: &Method, connection: &Arc<Connection>) -> Answer {
        let full = || {
            let text = "too many pages are open\n";
            let response = response(StatusCode::SERVICE_UNAVAILABLE, TEXT, text.into());
            with_header(response, header::RETRY_AFTER, "5")
        };
        if *method == Method::HEAD {
            return match self.events.has_room() {
                true => response(StatusCode::OK, EVENTS, Bytes::new()),
                false => full(),
            };
        }
        let Some(stream) = self.events.open(connection) else {
            return full();
        };
        let response = response(StatusCode::OK, EVENTS, Bytes::new());
        response.map(|_| Either::Right(stream))
    }

    fn health(&self) -> Answer {
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

    /// Exports all new figures, a part at a time: the recorder keeps each value until it is
    /// drained. Returns whether it took several parts.
    fn export(&self, exporter: &mut Exporter) -> bool {
        let shared = &self.view.shared;
        for part in 0..PARTS {
            exporter.export(shared, |runtime| self.view.watches(runtime), true);
            if !exporter.is_behind() {
                return part > 0;
            }
            self.rendered.run_upkeep();
        }
        true
    }

    /// Takes in all new figures. The recorder keeps each value until a scrape or this. Returns
    /// whether there were many.
    pub(super) fn keep_up(&self) -> bool {
        let mut exporter = self.exporter.lock();
        let were_many = self.export(&mut exporter);
        self.rendered.run_upkeep();
        were_many
    }

    /// The metrics as of the last export.
    #[cfg(test)]
    pub(super) fn rendered_so_far(&self) -> String {
        self.rendered.render()
    }

    /// Why the program should be restarted, if it should.
    ///
    /// It reads the stalls going on without their names, so it answers while the reporter is held
    /// up.
    fn reason_to_restart(&self) -> Option<String> {
        let liveness = self.view.watch.settings.liveness;
        let known = self.view.shared.known_until(clock::now());
        let live = self.view.shared.live.lock().clone();
        let runtimes = self.view.runtimes();
        let reasons = runtimes.iter().filter_map(|runtime| {
            let held: Vec<(usize, Duration)> = live
                .iter()
                .filter(|live| live.runtime.id == runtime.id)
                .filter_map(|live| Some((live.worker, live.proven_age(known)?)))
                .collect();
            let workers = runtime.metrics.num_workers();
            let of_workers = liveness.verdict(&runtime.name, workers, &held);
            of_workers.or_else(|| {
                let waited = known.since(runtime.stats.pool_exhausted_since()?);
                liveness.verdict_on_pool(&runtime.name, waited)
            })
        });
        let reasons: Vec<String> = reasons.collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }
}

fn method_not_allowed() -> Answer {
    let text = "only GET and HEAD\n";
    let response = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, text.into());
    with_header(response, header::ALLOW, "GET, HEAD")
}

fn refused(status: StatusCode, why: &'static str) -> Answer {
    let response = response(status, TEXT, why.into());
    match status {
        StatusCode::UNAUTHORIZED => with_header(response, header::WWW_AUTHENTICATE, "Bearer"),
        _ => response,
    }
}

/// The answer of a watch that is switched off. Prometheus gets what a detector that was stopped
/// tells, so its alert holds.
fn answer_of_none(path: &str) -> Answer {
    match path {
        "/health/live" => response(StatusCode::OK, TEXT, "ok\n".into()),
        "/metrics" => {
            let (last_tick, why) = (LAST_TICK.name, Coverage::OFF);
            let text = format!("# {why}\n# TYPE {last_tick} gauge\n{last_tick} 0\n");
            response(StatusCode::OK, PROMETHEUS, text.into())
        }
        _ => {
            let text = format!("nothing is seen: {}\n", Coverage::OFF);
            response(StatusCode::SERVICE_UNAVAILABLE, TEXT, text.into())
        }
    }
}

/// The address without the token, which the cookie has from now on.
fn set_cookie(cookie: &str) -> Answer {
    let response = response(StatusCode::SEE_OTHER, TEXT, Bytes::new());
    let mut response = with_header(response, header::LOCATION, "/");
    // Its characters are letters, digits and a few signs.
    if let Ok(cookie) = HeaderValue::from_str(cookie) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

pub(super) fn with_header(response: Answer, name: HeaderName, value: &'static str) -> Answer {
    let mut response = response;
    let value = HeaderValue::from_static(value);
    response.headers_mut().insert(name, value);
    response
}

/// An answer that no browser keeps, takes for something else, or gives to a page of another site.
pub(super) fn response(status: StatusCode, kind: &'static str, body: Bytes) -> Answer {
    let mut response = Response::new(Either::Left(Full::new(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, kind),
        (CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (CROSS_ORIGIN_RESOURCE_POLICY, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

const CROSS_ORIGIN_RESOURCE_POLICY: HeaderName =
    HeaderName::from_static("cross-origin-resource-policy");
