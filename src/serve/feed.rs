//! The news for the page: each event is rendered once, if it has changed.
//!
//! *Runs on:* the thread `stall-serve`.
//! *Must not:* take a lock of the program. The detector's locks are held for a copy.
//!
//! A page may get the same event twice, and takes the later one for each stall, each cell of a
//! lane and each table.

use super::{lanes, program};
use crate::clock::{self, Nanos};
use crate::engine::{Coverage, View};
use crate::report::{Certainty, SiteTotals, StallReport, of_the_poll};
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

/// The last state of each event.
pub(super) struct Feed {
    view: View,
    program: String,
    started_at: f64,
    /// The zero of the shared clock, in seconds since 1970. It stays as it was at the start, so
    /// that cells do not move with the wall clock.
    zero: f64,
    hello: String,
    totals: String,
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
    headline: String,
    place: Option<String>,
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
    now: f64,
    watching: bool,
    step_seconds: f64,
    /// The time of cell 0, in seconds since 1970.
    zero: f64,
    /// The number of the first cell.
    first: u64,
    workers: Vec<LaneEvent>,
    stalled: Vec<StalledEvent>,
}

#[derive(Serialize)]
struct LaneEvent {
    runtime: String,
    worker: usize,
    cells: String,
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
            zero: unix(clock::wall_clock(Nanos::default())),
            view,
            program: program(),
            hello: String::new(),
            totals: String::new(),
            stalls: VecDeque::new(),
            changes: 0,
            shown_until: Nanos::default(),
        }
    }

    /// All that is known, for a page that has just been opened. Without other pages, the state may
    /// be old, and is taken anew.
    pub(super) fn all(&mut self, is_first: bool) -> Bytes {
        if is_first {
            self.new_stalls();
            self.changed_tables();
        }
        let mut text = self.hello.clone();
        self.stalls.iter().for_each(|(_, stall)| text += stall);
        text += &self.totals;
        let until = if is_first {
            clock::now()
        } else {
            self.shown_until
        };
        self.shown_until = until;
        text += &event("lanes", &self.lanes(until.minus(lanes::SHOWN), until));
        Bytes::from(text)
    }

    /// The news since the last call.
    pub(super) fn news(&mut self) -> Bytes {
        let mut text = self.changed_tables();
        text += &self.new_stalls();
        let until = clock::now();
        text += &event("lanes", &self.lanes(self.shown_until, until));
        self.shown_until = until;
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

    fn changed_tables(&mut self) -> String {
        let hello = event("hello", &self.hello_event());
        let totals = event("totals", &self.totals_event());
        let mut news = String::new();
        for (new, known) in [(hello, &mut self.hello), (totals, &mut self.totals)] {
            if new != *known {
                news += &new;
                *known = new;
            }
        }
        news
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

    fn lanes(&self, from: Nanos, until: Nanos) -> Lanes {
        let now = clock::now();
        let (first, workers) = lanes::read(&self.view, from, until);
        let workers = workers.into_iter().map(|lane| LaneEvent {
            runtime: lane.runtime,
            worker: lane.worker,
            cells: lane.cells,
        });
        let last_tick = self.view.shared.last_tick();
        Lanes {
            now: unix(SystemTime::now()),
            watching: last_tick.is_none_or(|tick| now.since(tick) < STOPPED),
            step_seconds: lanes::STEP.as_secs_f64(),
            zero: self.zero,
            first,
            workers: workers.collect(),
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
        SiteEvent { totals, place }
    }
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
            headline: report.headline().to_string(),
            place: report.site.as_ref().map(ToString::to_string),
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
