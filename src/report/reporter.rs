//! The reporter: names what the watchdog found, and tells everybody.
//!
//! *Runs on:* its own thread, `stall-reporter`.
//! *Here:* may allocate, wait, and call the user's code. What must not be lost comes first: a report is
//! kept before it goes to the callback, and logged last.

use super::log::{self, Log};
use super::{Missing, Phase, PoolWaitReport, StallReport};
use crate::clock::{self, Nanos};
use crate::engine::{Shared, Watch, WatchedRuntime};
use crate::probe::{SpanName, resolve_span};
use crate::slot::names::{self, Name};
use crate::slot::{Kind, Marks, Slot};
use crate::watchdog::ENDLESS_AFTER;
use crate::watchdog::detector::{HeldBy, PollKey, Stall};
use crate::watchdog::workers::wall_clock;
use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

/// News for the reporter.
#[derive(Debug)]
pub(crate) enum Message {
    Stall(Box<StallNews>),
    PoolWait(PoolNews),
}

/// What the watchdog found out about a worker.
#[derive(Debug)]
pub(crate) struct StallNews {
    /// `None` for a poll that is only suspected: its names are wanted, in case.
    pub(crate) announcement: Option<Announcement>,
    pub(crate) runtime: Arc<WatchedRuntime>,
    pub(crate) worker: usize,
    pub(crate) stall: Stall,
    pub(crate) thread: Option<StallThread>,
}

#[derive(Debug)]
pub(crate) struct Announcement {
    pub(crate) id: u64,
    pub(crate) phase: Phase,
    pub(crate) last_words: Arc<AtomicBool>,
}

/// The thread that drives the worker, and the marks it had when the watchdog looked.
#[derive(Debug)]
pub(crate) struct StallThread {
    pub(crate) slot: &'static Slot,
    pub(crate) tenancy: u64,
    pub(crate) marks: Option<Marks>,
}

/// What the pulse thread found out about a blocking pool.
#[derive(Debug)]
pub(crate) struct PoolNews {
    pub(crate) id: u64,
    pub(crate) phase: Phase,
    pub(crate) runtime: Arc<WatchedRuntime>,
    pub(crate) since: Nanos,
    pub(crate) waited: Duration,
}

/// The thread's main function; ends when the watchdog and the pulse thread have.
pub(crate) fn run(shared: &Shared, news: &Receiver<Message>) {
    let mut reporter = Reporter::default();
    for message in news {
        let now = clock::now();
        shared.reporter_busy_since.store(now.0, Ordering::Relaxed);
        match message {
            Message::Stall(news) => reporter.stall(&news, shared, now),
            Message::PoolWait(news) => reporter.pool_wait(&news, shared, now),
        }
        shared.reporter_busy_since.store(0, Ordering::Relaxed);
    }
}

/// Stalls going on whose names are remembered.
pub(super) const STALLS: usize = 1024;

/// Names looked up for polls that have not been announced; most never are.
const SUSPECTS: usize = 64;

#[derive(Default)]
struct Reporter {
    suspects: VecDeque<(PollKey, Names)>,
    /// By stall, from its announcement to its end.
    names: HashMap<u64, Names>,
    log: Log,
}

/// What the marks of a poll say, in words.
#[derive(Clone, Debug, Default)]
struct Names {
    span: Option<String>,
    task: Option<u64>,
    spawned_at: Option<String>,
    missing: Vec<Missing>,
}

impl Reporter {
    fn stall(&mut self, news: &StallNews, shared: &Shared, now: Nanos) {
        let Some(Announcement {
            id,
            phase,
            last_words,
        }) = &news.announcement
        else {
            if let HeldBy::Poll(poll) = news.stall.held_by {
                if self.suspects.len() == SUSPECTS {
                    self.suspects.pop_front();
                }
                self.suspects.push_back((poll, look_up(news)));
            }
            return;
        };
        let names = self.names_of(*id, news);
        if *phase == Phase::Ended {
            self.names.remove(id);
        }
        let stall = &news.stall;
        let mut report = StallReport {
            span: names.span,
            task: names.task,
            spawned_at: names.spawned_at,
            missing: names.missing,
            thread: news.thread.as_ref().map(|thread| thread.slot.thread_name()),
            tid: news
                .thread
                .as_ref()
                .map(|thread| thread.slot.tid())
                .filter(|tid| *tid != 0),
            ..StallReport::unnamed(
                *id,
                *phase,
                &news.runtime,
                news.worker,
                stall,
                stall.duration,
            )
        };
        let watch = &news.runtime.watch;
        watch.recent.lock().keep(report.clone());
        if report.duration >= ENDLESS_AFTER && !last_words.swap(true, Ordering::Relaxed) {
            log::write_last_words(&report);
        }
        if let Some(on_stall) = &watch.settings.on_stall {
            guarded(shared, || on_stall(&report));
        }
        guarded(shared, || self.log.stall(&mut report, watch, now));
    }

    /// The names of a stall: as looked up while the poll was only suspected, or now.
    fn names_of(&mut self, id: u64, news: &StallNews) -> Names {
        if let Some(known) = self.names.get(&id) {
            return known.clone();
        }
        let mut names = look_up(news);
        if names.span.is_none() {
            let suspected = self
                .suspects
                .iter()
                .rev()
                .find(|(poll, _)| HeldBy::Poll(*poll) == news.stall.held_by);
            if let Some((_, suspected)) = suspected {
                names = suspected.clone();
            }
        }
        if self.names.len() >= STALLS {
            // Their ends were dropped, or there are more workers than anybody has.
            self.names.clear();
        }
        self.names.insert(id, names.clone());
        names
    }

    fn pool_wait(&mut self, news: &PoolNews, shared: &Shared, now: Nanos) {
        let report = PoolWaitReport {
            id: news.id,
            phase: news.phase,
            runtime: news.runtime.name.clone(),
            started_at: wall_clock(news.since),
            waited: news.waited,
        };
        let watch: &Watch = &news.runtime.watch;
        watch.recent.lock().keep_pool_wait(report.clone());
        if let Some(on_pool_wait) = &watch.settings.on_pool_wait {
            guarded(shared, || on_pool_wait(&report));
        }
        guarded(shared, || self.log.pool_wait(&report, watch, now));
    }
}

/// The user's code may panic; that is counted, and the reporter goes on.
fn guarded(shared: &Shared, user_code: impl FnOnce()) {
    if std::panic::catch_unwind(AssertUnwindSafe(user_code)).is_err() {
        shared.failed_callbacks.fetch_add(1, Ordering::Relaxed);
    }
}

/// Puts a poll's marks into words, as far as the poll is still there to be asked about.
fn look_up(news: &StallNews) -> Names {
    let mut names = Names::default();
    if let Some(Name::Text(left_behind)) = names::name(news.stall.name) {
        names.span = Some(left_behind.to_owned());
    }
    let HeldBy::Poll(poll) = news.stall.held_by else {
        names.missing.push(Missing::Unmarked);
        return names;
    };
    let marks = news.thread.as_ref().and_then(|thread| {
        let now = (thread.slot.tenancy() == thread.tenancy)
            .then(|| thread.slot.line.marks(poll.epoch))
            .flatten();
        now.or_else(|| thread.marks.clone())
    });
    if let Some(marks) = marks {
        names.read(&marks);
    }
    if names.span.is_none() && names.task.is_none() && names.missing.is_empty() {
        names.missing.push(Missing::MovedOn);
    }
    names
}

impl Names {
    fn read(&mut self, marks: &Marks) {
        let mut path: Vec<SpanName> = Vec::new();
        for entry in &marks.entries {
            match entry.kind {
                Kind::Name => path.extend(watched_name(entry.id)),
                Kind::Task => self.task = Some(entry.id),
                Kind::Span(source) => match resolve_span(source, entry.id) {
                    Some(span) => join(&mut path, span),
                    None => self.missing.push(Missing::MovedOn),
                },
                Kind::Unknown => self.missing.push(Missing::MovedOn),
            }
        }
        self.missing.dedup();
        if marks.hidden > 0 {
            self.missing.push(Missing::TooDeep);
        }
        if self.task.is_some() {
            self.spawned_at = match names::name(marks.place) {
                Some(Name::Place(place)) => Some(format!("{}:{}", place.file(), place.line())),
                _ => None,
            };
        }
        if !path.is_empty() {
            self.span = Some(written(&path));
        }
    }
}

/// A span's path holds all its parents. Where an outer span is one of them, the path goes on from there.
fn join(path: &mut Vec<SpanName>, span: Vec<SpanName>) {
    let shared = span.iter().rposition(|parent| {
        path.iter()
            .any(|known| known.id == parent.id && known.id != 0)
    });
    let new = shared.map_or(0, |shared| shared + 1);
    path.extend(span.into_iter().skip(new));
}

/// Watched names have no id of their own: 0.
fn watched_name(number: u64) -> Option<SpanName> {
    match names::name(u32::try_from(number).ok()?)? {
        Name::Text(name) => Some(SpanName {
            id: 0,
            name,
            fields: None,
        }),
        Name::Place(_) => None,
    }
}

fn written(path: &[SpanName]) -> String {
    let mut text = String::new();
    for (index, span) in path.iter().enumerate() {
        if index > 0 {
            text.push_str(" > ");
        }
        text.push_str(span.name);
        if let Some(fields) = &span.fields {
            text.push('{');
            text.push_str(fields);
            text.push('}');
        }
    }
    text
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn span(id: u64, name: &'static str) -> SpanName {
        SpanName {
            id,
            name,
            fields: None,
        }
    }

    #[test]
    fn a_path_does_not_repeat_parents_that_are_entered_too() {
        let mut path = Vec::new();
        join(&mut path, vec![span(1, "request")]);
        join(&mut path, vec![span(1, "request"), span(2, "get_user")]);
        join(
            &mut path,
            vec![span(1, "request"), span(2, "get_user"), span(3, "query")],
        );
        assert_eq!(written(&path), "request > get_user > query");
    }

    #[test]
    fn names_and_spans_of_other_trees_stand_in_a_row() {
        let mut path = vec![span(0, "reindex")];
        join(&mut path, vec![span(7, "batch"), span(8, "write")]);
        path.push(span(0, "flush"));
        path.last_mut().unwrap().fields = Some("rows=3".to_owned());
        assert_eq!(written(&path), "reindex > batch > write > flush{rows=3}");
    }
}
