//! The news for the page: each event is rendered once, if it has changed.
//!
//! *Runs on:* the thread `stall-serve`.
//! *Must not:* take a lock of the program. The detector's locks are held for a copy.
//!
//! A page may get the same event twice, and takes the later one for each stall, each cell of a
//! lane and each table.

use super::lanes::{self, Cells};
use super::program;
use crate::clock::{self, Nanos};
use crate::engine::{Coverage, View};
use crate::report::{Cause, Certainty, Site, SiteTotals, StallReport, of_the_poll};
#[cfg(feature = "tower")]
use crate::tally::{Seen, Tally};
use hyper::body::Bytes;
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

/// The stalls that a page gets first: so many of the last, and so many bytes of them.
const HISTORY: usize = 64;
const HISTORY_BYTES: usize = 2 << 20;
/// The sites in a table, those that lost most.
const SITES: usize = 100;
/// The calls of a stack, the innermost.
const CALLS: usize = 128;
/// The watchdog ticks each 25 ms at least. After so long without one, it has stopped.
const STOPPED: Duration = Duration::from_secs(3);
/// The time between two looks at the totals. Requests change them all the time.
const TOTALS: Duration = Duration::from_secs(1);

/// The last state of each event.
pub(super) struct Feed {
    view: View,
    program: String,
    started_at: f64,
    hello: String,
    totals: String,
    /// The last look at the totals.
    totals_at: Nanos,
    stalls: VecDeque<(u64, String)>,
    changes: u64,
    /// The end of the lanes that pages have.
    shown_until: Nanos,
}

#[derive(Serialize)]
struct Hello<'a> {
    version: &'static str,
    pid: u32,
    program: &'a str,
    started_at: f64,
    /// The same on the shared clock.
    started_clock: f64,
    runtimes: Vec<RuntimeEvent>,
}

#[derive(Serialize)]
struct RuntimeEvent {
    name: String,
    workers: usize,
    threshold_seconds: f64,
    tower: bool,
    coverage: String,
    gaps: Vec<crate::engine::Gap>,
}

/// A report with its texts. Its `stacks` are empty: `calls` has the representative one.
#[derive(Serialize)]
struct StallEvent {
    #[serde(flatten)]
    report: StallReport,
    /// The begin of the poll on the shared clock.
    started_clock: f64,
    /// The path of spans as the sites have it.
    span_names: Option<String>,
    headline: String,
    place: Option<String>,
    /// The row of `sites` that it belongs to, beside runtime, span and cause.
    shared_site: Option<String>,
    calls: Vec<CallEvent>,
    calls_left_out: usize,
    lacks: Vec<String>,
    text: String,
}

#[derive(Serialize)]
struct CallEvent {
    call: String,
    origin: crate::report::Origin,
    of_the_poll: bool,
    guessed: bool,
}

#[derive(Serialize)]
struct Lanes {
    /// The time of this event on the shared clock, on which cell 0 begins at 0. The wall clock may
    /// jump, and all ages with it.
    clock: f64,
    watching: bool,
    step_seconds: f64,
    /// The number of the first cell.
    first: u64,
    workers: Vec<Cells>,
    workers_left_out: usize,
    stalled: Vec<StalledEvent>,
}

/// A stall that goes on. It is here before its report is.
#[derive(Serialize)]
struct StalledEvent {
    id: u64,
    runtime: String,
    worker: usize,
    seconds: f64,
    certainty: Certainty,
}

#[derive(Serialize)]
struct Totals {
    stalls: u64,
    likely_stalls: u64,
    lost_seconds: f64,
    dropped_reports: u64,
    sites_left_out: usize,
    sites: Vec<SiteEvent>,
    routes: Vec<RouteEvent>,
}

#[derive(Serialize)]
struct SiteEvent {
    #[serde(flatten)]
    totals: SiteTotals,
    place: Option<String>,
    shared_site: Option<String>,
}

#[derive(Serialize)]
struct RouteEvent {
    runtime: String,
    route: String,
    requests: u64,
    held_up: u64,
    lost_seconds: f64,
}

fn event(name: &str, data: &impl Serialize) -> String {
    // Plain data always serializes. JSON has no line breaks outside of strings, and escapes those.
    let data = serde_json::to_string(data).unwrap_or_default();
    format!("event: {name}\ndata: {data}\n\n")
}

/// Seconds since 1970.
fn unix(time: SystemTime) -> f64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

/// Seconds on the shared clock.
fn seconds(at: Nanos) -> f64 {
    at.since(Nanos::default()).as_secs_f64()
}

/// The begin of a stall on the shared clock. The wall clock may have been set since the report.
fn began(report: &StallReport) -> Nanos {
    let ago = SystemTime::now().duration_since(report.started_at);
    clock::now().minus(ago.unwrap_or_default().max(report.duration))
}

/// The event, if it is not the known one.
fn changed(event: String, known: &mut String) -> String {
    if event == *known {
        return String::new();
    }
    known.clone_from(&event);
    event
}

/// The number and the sum of all durations in a tally.
#[cfg(feature = "tower")]
fn sum(tally: &Tally) -> (u64, f64) {
    tally
        .news(&mut Seen::default())
        .fold((0, 0.0), |all, batch| {
            let count = u64::from(batch.count);
            (
                all.0 + count,
                all.1 + count as f64 * batch.mean.as_secs_f64(),
            )
        })
}

impl Feed {
    pub(super) fn new(view: View) -> Feed {
        Feed {
            started_at: unix(clock::wall_clock(view.watch.started_at)),
            view,
            program: program(),
            hello: String::new(),
            totals: String::new(),
            totals_at: Nanos::default(),
            stalls: VecDeque::new(),
            changes: 0,
            shown_until: Nanos::default(),
        }
    }

    /// All that is known, for a page that has just been opened. Without other pages, the state may
    /// be old, and is taken anew.
    pub(super) fn all(&mut self, is_first: bool, now: Nanos) -> Bytes {
        if is_first {
            self.new_stalls();
            self.changed_hello();
            self.changed_totals(now);
            self.shown_until = now;
        }
        let mut text = self.hello.clone();
        self.stalls.iter().for_each(|(_, stall)| text += stall);
        let until = self.shown_until;
        text += &event("lanes", &self.lanes(until.minus(lanes::SHOWN), until, now));
        text += &self.totals;
        Bytes::from(text)
    }

    /// The news since the last call. The tables of a page need the stalls and the clock, so the
    /// totals are the last.
    pub(super) fn news(&mut self, now: Nanos) -> Bytes {
        let mut text = self.changed_hello();
        text += &self.new_stalls();
        text += &event("lanes", &self.lanes(self.shown_until, now, now));
        self.shown_until = now;
        if now.since(self.totals_at) >= TOTALS {
            text += &self.changed_totals(now);
        }
        Bytes::from(text)
    }

    /// The event after which there is no other.
    pub(super) fn last_words() -> Bytes {
        Bytes::from_static(b"event: end\ndata: {}\n\n")
    }

    fn new_stalls(&mut self) -> String {
        let (changes, reports) = self.view.watch.recent.lock().since(self.changes);
        self.changes = changes;
        let mut news = String::new();
        for report in reports {
            let id = report.id;
            let stall = event("stall", &StallEvent::of(report));
            news += &stall;
            match self.stalls.iter_mut().find(|(known, _)| *known == id) {
                Some((_, known)) => *known = stall,
                None => self.stalls.push_back((id, stall)),
            }
        }
        let bytes = |stalls: &VecDeque<(u64, String)>| -> usize {
            stalls.iter().map(|(_, stall)| stall.len()).sum()
        };
        while self.stalls.len() > HISTORY || bytes(&self.stalls) > HISTORY_BYTES {
            self.stalls.pop_front();
        }
        news
    }

    fn changed_hello(&mut self) -> String {
        let hello = event("hello", &self.hello_event());
        changed(hello, &mut self.hello)
    }

    fn changed_totals(&mut self, now: Nanos) -> String {
        self.totals_at = now;
        let totals = event("totals", &self.totals_event());
        changed(totals, &mut self.totals)
    }

    fn hello_event(&self) -> Hello<'_> {
        let runtimes = self.view.runtimes();
        let runtimes = runtimes.iter().map(|runtime| {
            let coverage = Coverage::of(runtime);
            RuntimeEvent {
                name: runtime.name.clone(),
                workers: runtime.metrics.num_workers(),
                threshold_seconds: runtime.rules.threshold.as_secs_f64(),
                tower: cfg!(feature = "tower"),
                coverage: coverage.to_string(),
                gaps: coverage.gaps(),
            }
        });
        Hello {
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            program: &self.program,
            started_at: self.started_at,
            started_clock: seconds(self.view.watch.started_at),
            runtimes: runtimes.collect(),
        }
    }

    fn totals_event(&self) -> Totals {
        let mut sites = self.view.watch.profile.lock().sites();
        let lost_seconds = sites.iter().map(|site| site.total.as_secs_f64()).sum();
        let sites_left_out = sites.len().saturating_sub(SITES);
        sites.truncate(SITES);
        let runtimes = self.view.runtimes();
        // Relaxed: figures for people.
        let count = |of: fn(&crate::engine::WatchedRuntime) -> u64| -> u64 {
            runtimes.iter().map(|runtime| of(runtime)).sum()
        };
        Totals {
            stalls: count(|runtime| runtime.stats.certain.load(Ordering::Relaxed)),
            likely_stalls: count(|runtime| runtime.stats.likely.load(Ordering::Relaxed)),
            lost_seconds,
            dropped_reports: self.view.shared.dropped_reports.load(Ordering::Relaxed),
            sites_left_out,
            sites: sites.into_iter().map(SiteEvent::of).collect(),
            routes: self.routes(),
        }
    }

    #[cfg(feature = "tower")]
    fn routes(&self) -> Vec<RouteEvent> {
        let mut routes = Vec::new();
        for runtime in self.view.runtimes() {
            let Some(used) = runtime.requests.used() else {
                continue;
            };
            let places = used.lost.iter().zip(&used.durations).enumerate();
            for (place, (lost, durations)) in places.filter(|(_, (lost, _))| !lost.is_empty()) {
                let (held_up, lost_seconds) = sum(lost);
                routes.push(RouteEvent {
                    runtime: runtime.name.clone(),
                    route: crate::requests::Route::at(place).name().to_owned(),
                    requests: sum(durations).0,
                    held_up,
                    lost_seconds,
                });
            }
        }
        routes.sort_by(|a, b| b.lost_seconds.total_cmp(&a.lost_seconds));
        routes
    }

    #[cfg(not(feature = "tower"))]
    fn routes(&self) -> Vec<RouteEvent> {
        Vec::new()
    }

    fn lanes(&self, from: Nanos, until: Nanos, now: Nanos) -> Lanes {
        let shown = lanes::read(&self.view, from, until);
        let last_tick = self.view.shared.last_tick();
        Lanes {
            clock: seconds(now),
            watching: last_tick.is_none_or(|tick| now.since(tick) < STOPPED),
            step_seconds: lanes::STEP.as_secs_f64(),
            first: shown.first,
            workers: shown.workers,
            workers_left_out: shown.left_out,
            stalled: self.stalled(now),
        }
    }

    /// The stalls going on, also while the reporter is held up.
    fn stalled(&self, now: Nanos) -> Vec<StalledEvent> {
        let live = self.view.shared.live.lock().clone();
        let ours = live.iter().filter(|live| self.view.watches(&live.runtime));
        let stalled = ours.map(|live| StalledEvent {
            id: live.id.0,
            runtime: live.runtime.name.clone(),
            worker: live.worker,
            seconds: now.since(live.stall.since).as_secs_f64(),
            certainty: live.stall.certainty,
        });
        stalled.collect()
    }
}

impl SiteEvent {
    fn of(totals: SiteTotals) -> SiteEvent {
        let place = totals.site.as_ref().map(ToString::to_string);
        let shared_site = shared(totals.site.as_ref(), totals.cause);
        SiteEvent {
            totals,
            place,
            shared_site,
        }
    }
}

fn shared(site: Option<&Site>, cause: Cause) -> Option<String> {
    site.map(|site| site.shared(cause).to_string())
}

impl StallEvent {
    fn of(report: StallReport) -> StallEvent {
        let index = report.representative_stack.unwrap_or(0);
        let stack = report.stacks.get(index);
        let frames = stack.map_or(&[][..], |stack| &stack.frames);
        let certain = stack.map_or(0, |stack| stack.certain_frames);
        let of_the_poll = of_the_poll(frames).len();
        let calls = frames.iter().take(CALLS).enumerate();
        let calls = calls.map(|(index, frame)| CallEvent {
            call: frame.to_string(),
            origin: frame.origin,
            of_the_poll: index < of_the_poll,
            guessed: index >= certain,
        });
        StallEvent {
            started_clock: seconds(began(&report)),
            span_names: report.span_names(),
            headline: report.headline().to_string(),
            place: report.site.as_ref().map(ToString::to_string),
            shared_site: shared(report.site.as_ref(), report.cause),
            calls: calls.collect(),
            calls_left_out: frames.len().saturating_sub(CALLS),
            lacks: report.missing.iter().map(ToString::to_string).collect(),
            text: report.to_string(),
            report: StallReport {
                stacks: Vec::new(),
                representative_stack: None,
                ..report
            },
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::engine::{Shared, WatchedRuntime};
    use serde_json::Value;
    use std::sync::Arc;

    fn with_feed(test: impl FnOnce(&mut Feed, &WatchedRuntime)) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let tokio = builder.build().unwrap();
        let runtime = WatchedRuntime::for_tests(tokio.handle());
        let shared = Arc::new(Shared::default());
        shared.watched.lock().push(runtime.clone());
        let watch = runtime.watch.clone();
        test(&mut Feed::new(View { watch, shared }), &runtime);
    }

    /// The data of the event with this name.
    fn data(news: &Bytes, name: &str) -> Value {
        let text = std::str::from_utf8(news).unwrap();
        let (_, after) = text.split_once(&format!("event: {name}\ndata: ")).unwrap();
        serde_json::from_str(after.lines().next().unwrap()).unwrap()
    }

    fn has_totals(news: &Bytes) -> bool {
        let text = std::str::from_utf8(news).unwrap();
        text.contains("event: totals\n")
    }

    #[test]
    fn cells_and_the_time_of_an_event_are_on_one_clock() {
        with_feed(|feed, _| {
            let now = Nanos(0).plus(Duration::from_secs(100));
            let first = feed.all(true, now);
            let lanes = data(&first, "lanes");
            assert_eq!(lanes["clock"], 100.0);
            let cells = lanes["workers"][0]["cells"].as_str().unwrap().len() as u64;
            let end = lanes["first"].as_u64().unwrap() + cells;
            let age = 100.0 - end as f64 * lanes["step_seconds"].as_f64().unwrap();
            assert!((0.0..0.1).contains(&age), "the last cell ends {age} s ago");
            let started = seconds(feed.view.watch.started_at);
            assert_eq!(data(&first, "hello")["started_clock"], started);
        });
    }

    #[test]
    fn a_stall_has_its_begin_on_the_same_clock_and_its_span_without_fields() {
        let report = StallReport {
            span: Some("request{id=7}".to_owned()),
            started_at: SystemTime::now() - Duration::from_secs(5),
            duration: Duration::from_secs(2),
            ..crate::report::example()
        };
        let age = |event: StallEvent| seconds(clock::now()) - event.started_clock;
        let event = StallEvent::of(report.clone());
        assert_eq!(event.span_names.as_deref(), Some("request"));
        assert!((4.9..60.0).contains(&age(event)), "it began before");
        // The wall clock has been set back since.
        let started_at = SystemTime::now() + Duration::from_secs(3600);
        let event = StallEvent::of(StallReport {
            started_at,
            ..report
        });
        assert!((1.9..60.0).contains(&age(event)), "it took two seconds");
    }

    #[test]
    fn totals_that_change_all_the_time_are_sent_once_a_second() {
        with_feed(|feed, runtime| {
            let begin = Nanos(0).plus(Duration::from_secs(100));
            assert!(has_totals(&feed.all(true, begin)));
            let sent = (1..=40).filter(|tick| {
                runtime.stats.certain.fetch_add(1, Ordering::Relaxed);
                let now = begin.plus(Duration::from_millis(250) * *tick);
                has_totals(&feed.news(now))
            });
            let sent: Vec<u32> = sent.collect();
            assert_eq!(sent, [4, 8, 12, 16, 20, 24, 28, 32, 36, 40]);
            let later = begin.plus(Duration::from_secs(60));
            assert!(!has_totals(&feed.news(later)), "nothing has changed");
        });
    }

    #[test]
    fn a_table_comes_after_the_stalls_and_the_clock_that_it_needs() {
        with_feed(|feed, runtime| {
            let now = clock::now();
            feed.all(true, now);
            runtime.stats.certain.fetch_add(1, Ordering::Relaxed);
            let report = crate::report::example();
            runtime.watch.recent.lock().keep(report);
            let later = feed.news(now.plus(TOTALS));
            for news in [later, feed.all(false, now)] {
                let text = std::str::from_utf8(&news).unwrap();
                let place = |name: &str| text.find(&format!("event: {name}\n")).unwrap();
                assert!(place("stall") < place("lanes"), "{text}");
                assert!(place("lanes") < place("totals"), "{text}");
            }
        });
    }
}
