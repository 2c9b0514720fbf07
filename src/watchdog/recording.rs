//! Records what the watchdog sees of a worker: one segment for as long as its state is the same.
//!
//! *Runs on:* `stall-watchdog`.
//! *Must not:* wait, allocate, or look at anything that the watchdog has not looked at anyway.

use crate::clock::Nanos;
use crate::detect::{Counters, Sample};
use crate::engine::{Figures, Lane, Packed, Ring, StallId, WatchedRuntime};
use crate::os::ThreadEvidence;
use crate::slot::Thread;
use std::time::Duration;

/// A segment that goes on this long is closed, and another one begins: with the longest tick, none
/// is longer than 250 ms.
const LONGEST_SEGMENT: Duration = Duration::from_millis(225);
/// The part of a segment that does not fit into its word, and is left to the next one, is shorter.
const LONGEST_REST: Duration = Duration::from_millis(2);

/// The writer of one worker's ring.
#[derive(Debug, Default)]
pub(super) struct Tape {
    lane: Option<Lane>,
    stall: Option<StallId>,
    /// The figures of the open segment.
    figures: Figures,
    /// The time up to which the worker has been recorded.
    last: Nanos,
    seen: Option<LastSeen>,
    hold_begun: Option<HoldBegun>,
}

/// The counters and clocks at the last look.
#[derive(Clone, Copy, Debug)]
struct LastSeen {
    counters: Counters,
    thread: Option<(Thread, ThreadEvidence)>,
    turns: u64,
}

/// The look that first met the present hold: if it becomes a suspicion, the worker was held from
/// there on.
#[derive(Clone, Copy, Debug)]
struct HoldBegun {
    serial: u64,
    at: Nanos,
    /// The figures of the open segment until then.
    figures: Figures,
}

/// The part of a look that the detector has decided.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Decided {
    /// The serial of the present hold.
    pub(super) hold: Option<u64>,
    /// The number of the stall or of the suspicion that holds the worker.
    pub(super) stall: Option<StallId>,
    /// The worker is not parked, and nothing shows that a thread drives it.
    pub(super) is_undriven: bool,
}

impl Tape {
    /// Takes in a look. `turns` is the number of turns counted so far.
    pub(super) fn look(
        &mut self,
        (runtime, worker): (&WatchedRuntime, usize),
        sample: &Sample,
        turns: u64,
        decided: Decided,
    ) {
        if let Some(ring) = runtime.recorder.ring(worker) {
            self.look_into(ring, sample, turns, decided);
        }
    }

    /// Takes in a tick at which the worker rested: it has been parked since the last one.
    pub(super) fn rest(&mut self, (runtime, worker): (&WatchedRuntime, usize), now: Nanos) {
        if let Some(ring) = runtime.recorder.ring(worker) {
            self.rest_into(ring, now);
        }
    }

    fn look_into(&mut self, ring: &Ring, sample: &Sample, turns: u64, decided: Decided) {
        let thread = sample.slot.map(|slot| slot.thread).zip(sample.thread);
        let now = LastSeen {
            counters: sample.after,
            thread,
            turns,
        };
        let before = self.seen.replace(now);
        let length = sample.at.since(self.last.max(ring.end()));
        let figures = LastSeen::between(before.as_ref(), &now);
        let lane = lane(&decided, before.map(|before| before.counters), &now, length);
        self.take(ring, sample.at, lane, figures, decided);
    }

    fn rest_into(&mut self, ring: &Ring, now: Nanos) {
        let is_due = now.since(ring.end()) >= LONGEST_SEGMENT;
        if self.lane.is_some_and(|lane| lane != Lane::Parked || is_due) {
            let (figures, decided) = (Figures::default(), Decided::default());
            self.take(ring, now, Lane::Parked, figures, decided);
        }
    }

    /// Adds the time since the last look to the open segment, or closes that one before.
    fn take(&mut self, ring: &Ring, at: Nanos, lane: Lane, figures: Figures, decided: Decided) {
        let is_another = self.lane != Some(lane) || self.stall != decided.stall;
        let mut closed = None;
        if is_another {
            closed = self.close_for(ring.end(), &decided);
        }
        self.lane = Some(lane);
        self.stall = decided.stall;
        self.figures.add(figures);
        self.last = at;
        self.note_hold(decided.hold, at);
        let end = end_after(ring, closed);
        if closed.is_none() && at.since(end) >= LONGEST_SEGMENT {
            closed = self.close(end, self.begun_after(end));
        }
        let open = self.packed(at.since(end_after(ring, closed)));
        ring.write(closed, open, self.stall);
    }

    /// Closes the open segment before a change of the state. A hold that becomes a suspicion has
    /// held the worker from its begin on.
    fn close_for(&mut self, end: Nanos, decided: &Decided) -> Option<Packed> {
        let is_same = |begun: &HoldBegun| Some(begun.serial) == decided.hold;
        let begun = self.hold_begun.filter(is_same);
        match begun.filter(|_| decided.stall.is_some() && self.lane != Some(Lane::Held)) {
            // All of the open segment is part of it.
            Some(begun) if begun.at.since(end) < LONGEST_REST => None,
            Some(begun) => self.close(end, Some(begun)),
            None => self.close(end, None),
        }
    }

    /// Closes the open segment at the begin of this hold, or else at the last look.
    fn close(&mut self, end: Nanos, begun: Option<HoldBegun>) -> Option<Packed> {
        let (at, first) =
            begun.map_or((self.last, self.figures), |begun| (begun.at, begun.figures));
        let rest = self.figures.after(first);
        self.figures = first;
        let closed = self.packed(at.since(end));
        self.figures = rest;
        if let Some(begun) = &mut self.hold_begun {
            begun.figures = Figures::default();
        }
        (!closed.length().is_zero()).then_some(closed)
    }

    /// Notes the begin of a new hold.
    fn note_hold(&mut self, hold: Option<u64>, at: Nanos) {
        let figures = self.figures;
        let known = self.hold_begun.filter(|begun| Some(begun.serial) == hold);
        let new = || {
            Some(HoldBegun {
                serial: hold?,
                at,
                figures,
            })
        };
        self.hold_begun = known.or_else(new);
    }

    /// The begin of the present hold, if it is a part of the open segment and may yet become a
    /// suspicion.
    fn begun_after(&self, end: Nanos) -> Option<HoldBegun> {
        let is_inside =
            |begun: &HoldBegun| begun.at.since(end) >= LONGEST_REST && begun.at < self.last;
        self.hold_begun
            .filter(|_| self.lane != Some(Lane::Held))
            .filter(is_inside)
    }

    fn packed(&self, length: Duration) -> Packed {
        let lane = self.lane.unwrap_or(Lane::Unknown);
        let stall = self.stall.map_or(0, |stall| stall.0);
        Packed::new(lane, length, &self.figures, stall)
    }
}

/// The end of the closed segments once this one is closed as well.
fn end_after(ring: &Ring, closed: Option<Packed>) -> Nanos {
    ring.end()
        .plus(closed.map_or(Duration::ZERO, Packed::length))
}

impl LastSeen {
    /// The figures of the time between two looks.
    fn between(before: Option<&LastSeen>, now: &LastSeen) -> Figures {
        let turns = before.map_or(0, |before| now.turns.saturating_sub(before.turns));
        match (before.and_then(|before| before.thread), now.thread) {
            (Some((same, before)), Some((thread, now))) if same == thread => Figures {
                cpu: now.cpu.saturating_sub(before.cpu),
                run_queue: now.run_queue.saturating_sub(before.run_queue),
                unseen: 0,
                turns,
            },
            _ => Figures {
                unseen: 1,
                turns,
                ..Figures::default()
            },
        }
    }
}

/// The state of a worker in the time up to a look. A worker that is parked, and was at work for
/// most of that time, was busy.
fn lane(decided: &Decided, before: Option<Counters>, now: &LastSeen, length: Duration) -> Lane {
    if decided.stall.is_some() {
        return Lane::Held;
    }
    if decided.is_undriven {
        return Lane::Unknown;
    }
    let busy = before.map_or(Duration::ZERO, |before| {
        now.counters.busy.saturating_sub(before.busy)
    });
    match now.counters.is_parked() && busy * 2 < length.max(Duration::from_nanos(1)) {
        true => Lane::Parked,
        false => Lane::Busy,
    }
}

/// Notes that all workers of a runtime have been looked at, or rest.
pub(super) fn ticked(runtime: &WatchedRuntime, at: Nanos) {
    runtime.recorder.ticked(at);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::detect::SlotSeen;
    use crate::engine::{Recorder, Segment};
    use crate::os::ThreadState;

    const BEGIN: Nanos = Nanos(1_000_000_000);

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// A worker's life, with a look each 5 ms.
    struct Film {
        recorder: Recorder,
        tape: Tape,
        sample: Sample,
        turns: u64,
    }

    impl Film {
        fn new() -> Film {
            let mut film = Film {
                recorder: Recorder::new(1, BEGIN),
                tape: Tape::default(),
                sample: sample(),
                turns: 0,
            };
            film.look(Decided::default());
            film
        }

        fn look(&mut self, decided: Decided) {
            self.sample.at = self.sample.at.plus(ms(5));
            let ring = self.recorder.ring(0).expect("a ring");
            self.tape.look_into(ring, &self.sample, self.turns, decided);
        }

        /// Computes for so many looks, with ten turns in each, or in one hold.
        fn busy(&mut self, looks: u32, decided: Decided) {
            self.sample.after.parks += self.sample.after.parks % 2;
            for _ in 0..looks {
                let thread = self.sample.thread.as_mut().expect("a thread");
                thread.cpu += ms(4);
                thread.run_queue += ms(1);
                self.turns += if decided.hold.is_some() { 0 } else { 10 };
                self.look(decided);
            }
        }

        fn parked(&mut self, looks: u32) {
            self.sample.after.parks += 1 - self.sample.after.parks % 2;
            (0..looks).for_each(|_| self.look(Decided::default()));
        }

        fn segments(&self) -> Vec<Segment> {
            self.recorder.segments(0, BEGIN)
        }

        /// The lanes with their lengths in milliseconds.
        fn lanes(&self) -> Vec<(Lane, u128)> {
            let lasts = |segment: &Segment| segment.to.since(segment.from).as_millis();
            let segments = self.segments();
            segments
                .iter()
                .map(|segment| (segment.lane, lasts(segment)))
                .collect()
        }
    }

    fn sample() -> Sample {
        Sample {
            at: BEGIN,
            late: Duration::ZERO,
            usually_late: Duration::ZERO,
            own_wait: None,
            before: Counters::default(),
            after: Counters {
                parks: 1,
                busy: Duration::ZERO,
            },
            slot: Some(SlotSeen {
                thread: (1, 1),
                claimed_at: BEGIN,
                epoch: 0,
                started: None,
                task: 0,
                allowed: false,
                allowed_until: None,
                loops: 0,
            }),
            turn: None,
            settled: true,
            still: true,
            thread: Some(ThreadEvidence {
                cpu: Duration::ZERO,
                run_queue: Duration::ZERO,
                runs: 0,
                state: ThreadState::OnCpu,
            }),
            clock: None,
            blind: false,
            preempted: false,
            signalled: false,
            unanswered: false,
            throttled: Duration::ZERO,
        }
    }

    fn hold(serial: u64, stall: Option<u64>) -> Decided {
        Decided {
            hold: Some(serial),
            stall: stall.map(StallId),
            is_undriven: false,
        }
    }

    #[test]
    fn a_state_that_stays_is_one_segment() {
        let mut film = Film::new();
        film.parked(7);
        film.busy(4, Decided::default());
        film.parked(2);
        assert_eq!(
            film.lanes(),
            [(Lane::Parked, 40), (Lane::Busy, 20), (Lane::Parked, 10)]
        );
        let busy = film.segments()[1];
        assert_eq!(busy.turns, 40);
        let near =
            |part: Option<Duration>, wanted: Duration| part.unwrap().abs_diff(wanted) < ms(1);
        assert!(
            near(busy.cpu, ms(16)) && near(busy.run_queue, ms(4)),
            "{busy:?}"
        );
    }

    #[test]
    fn a_long_state_has_a_segment_each_quarter_of_a_second() {
        let mut film = Film::new();
        film.busy(400, Decided::default());
        let lanes = film.lanes();
        assert!(lanes.len() >= 8, "{lanes:?}");
        assert!(lanes.iter().all(|(_, length)| *length <= 250), "{lanes:?}");
        let all: u128 = lanes.iter().map(|(_, length)| length).sum();
        assert_eq!(all, 401 * 5);
        let turns: u64 = film.segments().iter().map(|segment| segment.turns).sum();
        assert_eq!(turns, 4000);
    }

    #[test]
    fn a_suspicion_reaches_back_to_the_begin_of_its_hold() {
        let mut film = Film::new();
        film.busy(6, Decided::default());
        film.busy(2, hold(1, None));
        film.busy(10, hold(1, Some(17)));
        film.parked(1);
        let lanes = film.lanes();
        // The first look at the hold ends the time before it.
        let wanted = [
            (Lane::Parked, 5),
            (Lane::Busy, 35),
            (Lane::Held, 55),
            (Lane::Parked, 5),
        ];
        assert_eq!(lanes, wanted);
        let segments = film.segments();
        assert_eq!(segments[2].stall, Some(StallId(17)));
        assert_eq!(segments[1].turns, 60);
        assert_eq!((segments[2].turns, segments[1].stall), (0, None));
        let cpu = segments[2].cpu.expect("it is known");
        assert!(cpu.abs_diff(ms(44)) < ms(1), "{cpu:?}");
    }

    #[test]
    fn holds_that_come_to_nothing_leave_no_trace() {
        let mut film = Film::new();
        for serial in 1..=10 {
            film.busy(2, hold(serial, None));
        }
        assert_eq!(film.lanes(), [(Lane::Parked, 5), (Lane::Busy, 100)]);
        // Control: the same with a suspicion at each second look.
        for serial in 11..=20 {
            film.busy(1, hold(serial, None));
            film.busy(1, hold(serial, Some(serial)));
        }
        let held = film
            .lanes()
            .iter()
            .filter(|(lane, _)| *lane == Lane::Held)
            .count();
        assert_eq!(held, 10);
    }

    #[test]
    fn the_hold_is_kept_whole_where_a_long_segment_ends() {
        let mut film = Film::new();
        // The rule for long segments comes between the begin of the hold and the suspicion.
        film.busy(44, Decided::default());
        film.busy(3, hold(1, None));
        film.busy(10, hold(1, Some(9)));
        let lanes = film.lanes();
        assert_eq!(lanes.last(), Some(&(Lane::Held, 60)), "{lanes:?}");
        let all: u128 = lanes.iter().map(|(_, length)| length).sum();
        assert_eq!(all, 58 * 5);
    }

    #[test]
    fn a_worker_that_rests_costs_a_write_in_a_quarter_of_a_second() {
        let mut film = Film::new();
        film.parked(2);
        let ring = film.recorder.ring(0).expect("a ring");
        for tick in 1..=40 {
            let now = film.sample.at.plus(ms(25) * tick);
            film.tape.rest_into(ring, now);
            film.recorder.ticked(now);
        }
        let lanes = film.lanes();
        assert!((4..=6).contains(&lanes.len()), "{lanes:?}");
        assert!(lanes.iter().all(|(lane, _)| *lane == Lane::Parked));
        let all: u128 = lanes.iter().map(|(_, length)| length).sum();
        assert_eq!(all, 15 + 1000);
    }

    #[test]
    fn a_worker_that_nothing_drives_is_unknown_and_another_thread_has_no_figures() {
        let mut film = Film::new();
        film.sample.after.parks = 2;
        let undriven = Decided {
            is_undriven: true,
            ..Decided::default()
        };
        film.look(undriven);
        film.look(undriven);
        assert_eq!(film.lanes(), [(Lane::Parked, 5), (Lane::Unknown, 10)]);
        film.busy(1, Decided::default());
        assert!(film.segments()[2].cpu.is_some(), "control");
        film.sample.slot.as_mut().expect("a slot").thread = (2, 1);
        film.busy(1, Decided::default());
        assert_eq!(film.segments()[2].cpu, None);
    }

    #[test]
    fn a_worker_that_was_at_work_for_most_of_a_tick_was_busy() {
        let mut film = Film::new();
        film.sample.after.parks += 2;
        film.sample.after.busy += ms(4);
        film.look(Decided::default());
        film.sample.after.parks += 2;
        film.sample.after.busy += ms(1);
        film.look(Decided::default());
        let wanted = [(Lane::Parked, 5), (Lane::Busy, 5), (Lane::Parked, 5)];
        assert_eq!(film.lanes(), wanted);
    }
}
