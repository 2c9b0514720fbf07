//! Figures about one runtime, read by `status()` and the metrics.
//!
//! *Runs on:* the detector's threads write, each figure by one of them. Guards and exporters read.
//! *Must not:* make the watchdog wait. It takes none of the two locks, which others hold for some
//! instructions.
//!
//! Most figures only grow, so any number of readers can take the difference to their last look.

// Without metrics much of this is written and not read.
#![cfg_attr(not(feature = "metrics"), allow(dead_code))]

use crate::clock::{self, Nanos};
use crate::detect::WorkerState;
use crate::report::{Blocking, Cause, Certainty, StallReport};
use crate::tally::{Tally, UNNAMED};
use crate::turns::NoTurns;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Figures about one runtime.
#[derive(Debug)]
pub(crate) struct Stats {
    pub(crate) certain: AtomicU64,
    pub(crate) likely: AtomicU64,
    pub(crate) enrolled: AtomicUsize,
    /// Whether the runtime's own hooks mark every poll of every task.
    pub(crate) all_polls: AtomicBool,
    /// Whether a worker has been active since the pulse thread's last look.
    pub(crate) active: AtomicBool,
    /// The last time at which no thread was seen to drive this `current_thread` runtime; 0 for
    /// never.
    undriven_at: AtomicU64,
    pub(crate) scheduler_lag: WaitCounter,
    pub(crate) blocking_queue_wait: WaitCounter,
    /// The time at which the probe that waits for the blocking pool was sent; 0 for none.
    probe_sent_at: AtomicU64,
    /// The time since which the blocking pool is known to be exhausted; 0 while it is not.
    pool_exhausted_since: AtomicU64,
    /// By worker: its time by state.
    pub(crate) worker_time: Vec<TimeByState>,
    /// By worker: the turns of its loop, where they are counted.
    pub(crate) worker_turns: Vec<AtomicU64>,
    /// The reason why turns are not counted; 0 if they are.
    no_turns: AtomicU8,
    /// Nanoseconds for which the driver was frozen.
    driver_frozen: AtomicU64,
    /// Probes of the blocking pool that were not sent, since the system had no thread.
    pub(crate) no_thread: AtomicU64,
    pub(crate) stalls: Stalls,
}

impl Stats {
    pub(crate) fn new(workers: usize) -> Stats {
        Stats {
            certain: AtomicU64::new(0),
            likely: AtomicU64::new(0),
            enrolled: AtomicUsize::new(0),
            all_polls: AtomicBool::new(false),
            active: AtomicBool::new(false),
            undriven_at: AtomicU64::new(0),
            scheduler_lag: WaitCounter::default(),
            blocking_queue_wait: WaitCounter::default(),
            probe_sent_at: AtomicU64::new(0),
            pool_exhausted_since: AtomicU64::new(0),
            worker_time: one_each(workers),
            worker_turns: one_each(workers),
            no_turns: AtomicU8::new(0),
            driver_frozen: AtomicU64::new(0),
            no_thread: AtomicU64::new(0),
            stalls: Stalls::default(),
        }
    }

    /// Notes the reason why turns are not counted; `None` if they are.
    pub(crate) fn note_no_turns(&self, why: Option<NoTurns>) {
        let index = |why| NoTurns::ALL.iter().position(|known| *known == why);
        let code = why.and_then(index).map_or(0, |index| index as u8 + 1);
        self.no_turns.store(code, Ordering::Relaxed);
    }

    /// The reason why turns are not counted; `None` if they are.
    pub(crate) fn no_turns(&self) -> Option<NoTurns> {
        let code = self.no_turns.load(Ordering::Relaxed);
        NoTurns::ALL.get(usize::from(code).checked_sub(1)?).copied()
    }

    /// Adds time for which the driver was frozen.
    pub(crate) fn note_driver_frozen(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.driver_frozen.fetch_add(nanos, Ordering::Relaxed);
    }

    /// The time for which the driver was frozen: no worker waited for sockets and timers, since
    /// workers were stalled.
    pub(crate) fn driver_frozen(&self) -> Duration {
        Duration::from_nanos(self.driver_frozen.load(Ordering::Relaxed))
    }

    /// Counts a stall when it is first reported.
    pub(crate) fn count(&self, certainty: Certainty) {
        let counter = match certainty {
            Certainty::Certain => &self.certain,
            Certainty::Likely => &self.likely,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether some thread has driven the runtime since then, as far as it was looked at.
    pub(crate) fn is_driven_since(&self, then: Nanos) -> bool {
        time_in(&self.undriven_at).is_none_or(|undriven| undriven < then)
    }

    pub(crate) fn note_undriven(&self, at: Nanos) {
        set_time(&self.undriven_at, Some(at));
    }

    /// The time at which the probe was sent that waits for the blocking pool, if one does.
    pub(crate) fn probe_sent_at(&self) -> Option<Nanos> {
        time_in(&self.probe_sent_at)
    }

    pub(crate) fn set_probe_sent_at(&self, at: Option<Nanos>) {
        set_time(&self.probe_sent_at, at);
    }

    /// The time since which the blocking pool has been exhausted, if it is.
    #[cfg(any(feature = "serve", all(test, not(loom))))]
    pub(crate) fn pool_exhausted_since(&self) -> Option<Nanos> {
        time_in(&self.pool_exhausted_since)
    }

    pub(crate) fn set_pool_exhausted_since(&self, at: Option<Nanos>) {
        set_time(&self.pool_exhausted_since, at);
    }
}

// Relaxed: such a word is complete in itself, and publishes nothing else.
fn time_in(word: &AtomicU64) -> Option<Nanos> {
    let at = word.load(Ordering::Relaxed);
    (at != 0).then_some(Nanos(at))
}

fn set_time(word: &AtomicU64, at: Option<Nanos>) {
    word.store(at.map_or(0, |at| at.0), Ordering::Relaxed);
}

fn one_each<T: Default>(workers: usize) -> Vec<T> {
    std::iter::repeat_with(T::default).take(workers).collect()
}

/// A kind of wait: the last, the longest, and all by size.
#[derive(Debug, Default)]
pub(crate) struct WaitCounter {
    count: AtomicU64,
    last: AtomicU64,
    longest: AtomicU64,
    pub(crate) tally: Tally,
}

impl WaitCounter {
    /// Counts one wait. Only one thread may write.
    pub(crate) fn note(&self, wait: Duration) {
        let nanos = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        self.last.store(nanos, Ordering::Relaxed);
        self.longest.fetch_max(nanos, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
        self.tally.note(wait);
    }

    /// The last and the longest wait, or `None` before the first.
    pub(crate) fn get(&self) -> Option<(Duration, Duration)> {
        (self.count.load(Ordering::Relaxed) != 0).then(|| {
            let nanos = |wait: &AtomicU64| Duration::from_nanos(wait.load(Ordering::Relaxed));
            (nanos(&self.last), nanos(&self.longest))
        })
    }
}

/// The time of one worker by state, in nanoseconds; written by the watchdog.
#[derive(Debug, Default)]
pub(crate) struct TimeByState {
    nanos: [AtomicU64; WorkerState::ALL.len()],
    /// The busy time that tokio's counter does not have yet.
    unpublished: AtomicU64,
}

impl TimeByState {
    pub(crate) fn add(&self, state: WorkerState, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanos[state as usize].fetch_add(nanos, Ordering::Relaxed);
    }

    pub(crate) fn get(&self, state: WorkerState) -> Duration {
        Duration::from_nanos(self.nanos[state as usize].load(Ordering::Relaxed))
    }

    pub(crate) fn set_unpublished(&self, busy: Duration) {
        let nanos = u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX);
        self.unpublished.store(nanos, Ordering::Relaxed);
    }

    pub(crate) fn unpublished(&self) -> Duration {
        Duration::from_nanos(self.unpublished.load(Ordering::Relaxed))
    }
}

/// Causes as labels: the kind of cause, and for a blocked thread what blocked it.
pub(crate) const CAUSES: [(Cause, &str, &str); 11] = [
    (Cause::Cpu, "cpu", ""),
    (Cause::Blocked(Blocking::Sleep), "blocked", "sleep"),
    (Cause::Blocked(Blocking::Lock), "blocked", "lock"),
    (Cause::Blocked(Blocking::File), "blocked", "file"),
    (Cause::Blocked(Blocking::Network), "blocked", "network"),
    (Cause::Blocked(Blocking::Process), "blocked", "process"),
    (Cause::Blocked(Blocking::Other), "blocked", "other"),
    (Cause::Contention, "contention", ""),
    (Cause::Throttled, "throttled", ""),
    (Cause::Suspended, "suspended", ""),
    (Cause::Unknown, "unknown", ""),
];

/// The window of the longest recent stall.
pub(crate) const RECENT: Duration = Duration::from_secs(60);

/// The stalls of one runtime, written by the reporter.
#[derive(Debug, Default)]
pub(crate) struct Stalls {
    /// By cause, in the order of [`CAUSES`], and by certainty: certain, then likely.
    detected: [[AtomicU64; 2]; CAUSES.len()],
    /// Durations of certain stalls that are over, in the order of [`CAUSES`].
    ended: [Tally; CAUSES.len()],
    sites: Mutex<Sites>,
    longest: Mutex<Longest>,
}

fn index(cause: Cause) -> usize {
    let unknown = CAUSES.len() - 1;
    CAUSES
        .iter()
        .position(|(known, ..)| *known == cause)
        .unwrap_or(unknown)
}

impl Stalls {
    /// Counts a stall that has just been detected, or become certain.
    pub(crate) fn detected(&self, cause: Cause, certainty: Certainty) {
        self.detected[index(cause)][certainty_index(certainty)].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a stall that is over.
    pub(crate) fn ended(&self, report: &StallReport, sites: usize) {
        if report.certainty == Certainty::Certain {
            self.ended[index(report.cause)].note(report.duration);
            self.longest.lock().add(clock::now(), report.duration);
        }
        self.sites.lock().add(report, sites);
    }

    pub(crate) fn count(&self, cause: usize, certainty: Certainty) -> u64 {
        self.detected[cause][certainty_index(certainty)].load(Ordering::Relaxed)
    }

    pub(crate) fn durations(&self, cause: usize) -> &Tally {
        &self.ended[cause]
    }

    /// The longest stall that ended within the last [`RECENT`].
    pub(crate) fn longest_ended(&self, now: Nanos) -> Duration {
        self.longest.lock().get(now)
    }

    /// The stalls by span and site, so far.
    pub(crate) fn by_site(&self) -> Vec<(SpanSite, AtSite)> {
        let sites = self.sites.lock();
        sites
            .known
            .iter()
            .map(|(site, stalls)| (site.clone(), *stalls))
            .collect()
    }

    /// The stalls counted as "other", since there are too many sites.
    pub(crate) fn other_sites(&self) -> AtSite {
        self.sites.lock().other
    }
}

fn certainty_index(certainty: Certainty) -> usize {
    match certainty {
        Certainty::Certain => 0,
        Certainty::Likely => 1,
    }
}

/// A span and a site, as labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SpanSite {
    pub(crate) span: String,
    pub(crate) site: String,
}

/// The stalls at one site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AtSite {
    pub(crate) count: u64,
    /// The time that requests lost to them.
    pub(crate) lost_by_requests: Duration,
}

impl AtSite {
    fn add(&mut self, report: &StallReport) {
        self.count += 1;
        let victims = report.victims.as_ref();
        self.lost_by_requests += victims.map_or(Duration::ZERO, |victims| victims.total);
    }
}

#[derive(Debug, Default)]
struct Sites {
    known: HashMap<SpanSite, AtSite>,
    other: AtSite,
}

impl Sites {
    fn add(&mut self, report: &StallReport, most: usize) {
        let or_unnamed = |text: Option<String>| text.unwrap_or_else(|| UNNAMED.to_owned());
        let key = SpanSite {
            span: or_unnamed(report.span_names()),
            site: or_unnamed(report.site.as_ref().map(|site| site.label())),
        };
        let has_room = self.known.len() < most;
        match self.known.get_mut(&key) {
            Some(stalls) => stalls.add(report),
            None if has_room => self.known.entry(key).or_default().add(report),
            None => self.other.add(report),
        }
    }
}

/// The longest duration of a sliding window. It keeps the durations that are longer than all later
/// ones.
#[derive(Debug, Default)]
struct Longest(VecDeque<(Nanos, Duration)>);

impl Longest {
    fn add(&mut self, now: Nanos, duration: Duration) {
        while self.0.back().is_some_and(|(_, last)| *last <= duration) {
            self.0.pop_back();
        }
        self.0.push_back((now, duration));
        self.forget(now);
    }

    fn forget(&mut self, now: Nanos) {
        while self
            .0
            .front()
            .is_some_and(|(at, _)| now.since(*at) > RECENT)
        {
            self.0.pop_front();
        }
    }

    fn get(&mut self, now: Nanos) -> Duration {
        self.forget(now);
        self.0
            .front()
            .map_or(Duration::ZERO, |(_, longest)| *longest)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::report::Site;

    #[test]
    fn longest_is_forgotten_after_the_window_and_not_before() {
        let mut longest = Longest::default();
        let at = |seconds: u64| Nanos(seconds * 1_000_000_000);
        let ms = Duration::from_millis;
        longest.add(at(1), ms(300));
        longest.add(at(2), ms(100));
        longest.add(at(3), ms(200));
        assert_eq!(longest.0.len(), 2, "100 ms can never be the longest again");
        assert_eq!(longest.get(at(61)), ms(300));
        assert_eq!(longest.get(at(62)), ms(200));
        assert_eq!(longest.get(at(64)), Duration::ZERO);
    }

    #[test]
    fn ten_thousand_sites_end_as_other() {
        let stalls = Stalls::default();
        for number in 0..10_000 {
            let report = StallReport {
                site: Some(Site {
                    function: format!("app::handler_{number}"),
                    file: None,
                    line: Some(number),
                }),
                ..crate::report::example()
            };
            stalls.ended(&report, 64);
            stalls.ended(&report, 64);
        }
        let sites = stalls.by_site();
        assert_eq!(sites.len(), 64);
        assert!(
            sites
                .iter()
                .all(|(labels, stalls)| stalls.count == 2 && labels.span == "request > get_user")
        );
        assert_eq!(stalls.other_sites().count, 2 * (10_000 - 64));
    }

    #[test]
    fn every_cause_has_its_own_place() {
        for (place, (cause, label, kind)) in CAUSES.iter().enumerate() {
            assert_eq!(index(*cause), place);
            let both = if kind.is_empty() {
                (*label).to_owned()
            } else {
                format!("{label}/{kind}")
            };
            assert_eq!(both, cause.as_str());
        }
    }
}
