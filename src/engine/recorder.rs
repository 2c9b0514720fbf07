//! The flight recorder: one ring for each worker, with what the watchdog has seen of it.
//!
//! *Runs on:* `stall-watchdog` writes. Any thread reads.
//! *Must not:* lock or wait in a write; and a write allocates nothing.
//!
//! A ring holds *segments*: times in which a worker was in one state. A segment is one word of
//! 64 bits, so it is never read by halves. It has its length and not its time: a reader begins at
//! the ring's end, whose time is known, and goes back. The last segment is still open, and has a
//! word of its own.
//!
//! The writer makes `version` odd, then changes the end, the open word and the ring, then makes
//! `version` even again. A reader takes the end and the open word between two equal even readings.
//! It then copies words from the ring, and drops those that may have been overwritten meanwhile:
//! before each change the writer publishes in `reserved` how far it goes.
//!
//! [`SEGMENTS`] of 8 bytes are 64 KiB a worker. They last for 40 s if a worker changes its state at
//! each tick of 5 ms, for 20 s at 2.5 ms and for 8 s at 1 ms; a worker that does not change its
//! state has one segment per 250 ms, and 34 min. A process has at most [`RINGS`], which take
//! 16 MiB; further workers are not recorded.

use super::StallId;
use super::lags::Lags;
use crate::clock::Nanos;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::time::Duration;

/// The segments in the ring of one worker.
const SEGMENTS: usize = 8192;
/// The most rings in a process.
const RINGS: usize = 256;
/// A reader that meets the writer in the middle of a write tries again so often. A write takes some
/// nanoseconds, but the writer may lose its CPU in it.
const TRIES: usize = 1000;

/// The rings of this process.
static RINGS_IN_USE: AtomicUsize = AtomicUsize::new(0);

/// The state of a worker, as the watchdog saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Nothing is known of it; perhaps no thread drives it.
    Unknown,
    /// It waits for work.
    Parked,
    /// It polls, and its turns go on.
    Busy,
    /// A stall goes on, or a poll that may become one.
    Held,
}

/// The parts of a time, as the watchdog saw them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) cpu: Duration,
    pub(crate) run_queue: Duration,
    /// The parts of the time that were not seen, or in which another thread had the worker.
    pub(crate) unseen: u32,
    /// The turns of the worker's loop.
    pub(crate) turns: u64,
}

impl Figures {
    pub(crate) fn add(&mut self, other: Figures) {
        self.cpu += other.cpu;
        self.run_queue += other.run_queue;
        self.unseen += other.unseen;
        self.turns += other.turns;
    }

    /// The figures of the rest of a time, after a first part of it.
    pub(crate) fn after(self, first: Figures) -> Figures {
        Figures {
            cpu: self.cpu.saturating_sub(first.cpu),
            run_queue: self.run_queue.saturating_sub(first.run_queue),
            unseen: self.unseen.saturating_sub(first.unseen),
            turns: self.turns.saturating_sub(first.turns),
        }
    }
}

/// A time in which a worker was in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) from: Nanos,
    /// That of the last segment grows while it goes on.
    pub(crate) to: Nanos,
    pub(crate) lane: Lane,
    /// The CPU time of the worker's thread, to within 1/254 of the segment. `None` if it is not
    /// known for all of it.
    pub(crate) cpu: Option<Duration>,
    /// The time in which the thread was ready and had no CPU, as exact as `cpu`.
    pub(crate) run_queue: Option<Duration>,
    /// The time in which it slept: parked, or in a call of the program's code.
    pub(crate) asleep: Option<Duration>,
    /// The turns of the worker's loop; 0 while held, and where turns are not counted.
    pub(crate) turns: u64,
    /// The stall that held the worker, or the suspicion of one.
    pub(crate) stall: Option<StallId>,
}

/// One word of a ring.
///
/// | bits | content |
/// |---|---|
/// | 0, 1 | the lane |
/// | 2, 3 | the unit of the length: 2 to the 10 times so many microseconds |
/// | 4 to 21 | the length |
/// | 22 to 29 | CPU time, in 1/254 of the length; 255 if it is not known |
/// | 30 to 37 | time in the run queue, in the same way |
/// | 38 to 63 | turns, at most; if the worker is held, the last bits of the stall's number |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packed(u64);

/// The open word of a worker that has not been seen.
const NOTHING: Packed = Packed(0);
const LENGTH_BITS: u32 = 18;
const LONGEST: u64 = (1 << LENGTH_BITS) - 1;
const WHOLE: u64 = 254;
const NOT_KNOWN: u64 = 255;
const COUNT_BITS: u32 = 26;
const COUNT: u64 = (1 << COUNT_BITS) - 1;

impl Packed {
    /// The word for a segment of this length. It covers the part of it that fits into the word's
    /// unit: all but a microsecond of up to 262 ms, and all but a millisecond of up to 4 min.
    pub(crate) fn new(lane: Lane, length: Duration, figures: &Figures, stall: u64) -> Packed {
        let micros = u64::try_from(length.as_micros()).unwrap_or(u64::MAX);
        let fits = |unit: &u64| micros >> (10 * unit) <= LONGEST;
        let unit = (0..3).find(fits).unwrap_or(3);
        let units = (micros >> (10 * unit)).min(LONGEST);
        let share = |part: Duration| match figures.unseen {
            0 => share(part, length),
            _ => NOT_KNOWN,
        };
        let count = match lane {
            Lane::Held => stall & COUNT,
            _ => figures.turns.min(COUNT),
        };
        let lane = lane as u64;
        let shares = share(figures.cpu) << 22 | share(figures.run_queue) << 30;
        Packed(lane | unit << 2 | units << 4 | shares | count << 38)
    }

    /// The time that the segment covers.
    pub(crate) fn length(self) -> Duration {
        let (unit, units) = (self.0 >> 2 & 3, self.0 >> 4 & LONGEST);
        Duration::from_micros(units << (10 * unit))
    }

    fn lane(self) -> Lane {
        match self.0 & 3 {
            1 => Lane::Parked,
            2 => Lane::Busy,
            3 => Lane::Held,
            _ => Lane::Unknown,
        }
    }

    fn part(self, shift: u32) -> Option<Duration> {
        let share = self.0 >> shift & 0xff;
        let length = self.length();
        let whole = WHOLE as u32;
        (share != NOT_KNOWN).then(|| length * share as u32 / whole)
    }

    /// The segment that ends at this time. `newest` is the newest number of a stall.
    fn ending(self, to: Nanos, newest: u64) -> Segment {
        let (lane, count) = (self.lane(), self.0 >> 38);
        let (cpu, run_queue) = (self.part(22), self.part(30));
        let awake = cpu.zip(run_queue).map(|(cpu, queue)| cpu + queue);
        let is_held = lane == Lane::Held;
        Segment {
            from: to.minus(self.length()),
            to,
            lane,
            cpu,
            run_queue,
            asleep: awake.map(|awake| self.length().saturating_sub(awake)),
            turns: if is_held { 0 } else { count },
            stall: is_held
                .then(|| StallId(newest.wrapping_sub(newest.wrapping_sub(count) & COUNT))),
        }
    }
}

/// A part of a time in 1/254 of it, rounded.
fn share(part: Duration, length: Duration) -> u64 {
    let length = length.as_nanos().max(1);
    let whole = u128::from(WHOLE);
    let share = (part.as_nanos() * whole + length / 2) / length;
    u64::try_from(share.min(whole)).unwrap_or(WHOLE)
}

/// The ring of one worker.
#[derive(Debug)]
pub(crate) struct Ring {
    words: Box<[AtomicU64]>,
    /// Odd during a write.
    version: AtomicU64,
    /// The number of closed segments so far, with the one that is being written.
    reserved: AtomicU64,
    /// The number of closed segments so far.
    closed: AtomicU64,
    /// The end of the last closed segment, at which the open one begins.
    end: AtomicU64,
    open: AtomicU64,
    /// The newest number of a stall in this ring.
    newest: AtomicU64,
}

/// The parts of a ring that belong together.
#[derive(Clone, Copy, Debug)]
struct RingEnd {
    closed: u64,
    at: Nanos,
    open: Packed,
    newest: u64,
}

impl Ring {
    fn new(begin: Nanos) -> Ring {
        Ring::with_room(SEGMENTS, begin)
    }

    fn with_room(segments: usize, begin: Nanos) -> Ring {
        let words = std::iter::repeat_with(AtomicU64::default).take(segments);
        Ring {
            words: words.collect(),
            version: AtomicU64::new(0),
            reserved: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            end: AtomicU64::new(begin.0),
            open: AtomicU64::new(NOTHING.0),
            newest: AtomicU64::new(0),
        }
    }

    /// The end of the last closed segment. For the writer.
    pub(crate) fn end(&self) -> Nanos {
        // Relaxed: the writer reads its own store.
        Nanos(self.end.load(Ordering::Relaxed))
    }

    /// Closes a segment, if one is given, and shows the open one as it is now.
    ///
    /// Only one thread may write.
    pub(crate) fn write(&self, closed: Option<Packed>, open: Packed, stall: Option<StallId>) {
        // Relaxed: only this thread stores to any of these words.
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let (version, count) = (load(&self.version), load(&self.closed));
        self.version.store(version + 1, Ordering::Relaxed);
        let next = count + u64::from(closed.is_some());
        self.reserved.store(next, Ordering::Relaxed);
        // Release: pairs with the Acquire fences of `snapshot` and of `segments`. A reader that has
        // read one of the words below reads this version and this `reserved`, or later ones.
        fence(Ordering::Release);
        if let Some(closed) = closed {
            let place = count as usize % self.words.len();
            self.words[place].store(closed.0, Ordering::Relaxed);
            self.end
                .store(self.end().plus(closed.length()).0, Ordering::Relaxed);
            self.closed.store(next, Ordering::Relaxed);
        }
        self.open.store(open.0, Ordering::Relaxed);
        if let Some(stall) = stall.filter(|stall| stall.0 > load(&self.newest)) {
            self.newest.store(stall.0, Ordering::Relaxed);
        }
        // Release: pairs with the Acquire in `snapshot`.
        self.version.store(version + 2, Ordering::Release);
    }

    /// The ring's end; `None` if the writer is in the middle of a write for long.
    fn snapshot(&self) -> Option<RingEnd> {
        (0..TRIES).find_map(|_| {
            // Acquire: pairs with the Release at the end of `write`. All of that write is seen.
            let before = self.version.load(Ordering::Acquire);
            let end = RingEnd {
                closed: self.closed.load(Ordering::Relaxed),
                at: Nanos(self.end.load(Ordering::Relaxed)),
                open: Packed(self.open.load(Ordering::Relaxed)),
                newest: self.newest.load(Ordering::Relaxed),
            };
            // Acquire: pairs with the Release fence in `write`. If a word above is of a later
            // write, the version below is, too.
            fence(Ordering::Acquire);
            let is_whole = before % 2 == 0 && before == self.version.load(Ordering::Relaxed);
            if !is_whole {
                std::thread::yield_now();
            }
            is_whole.then_some(end)
        })
    }

    /// The segments that end after `since`, oldest first. The open one lasts until `seen_at`, if
    /// the watchdog has seen nothing else by then.
    fn segments(&self, since: Nanos, seen_at: Nanos) -> Vec<Segment> {
        let Some(end) = self.snapshot() else {
            return Vec::new();
        };
        let room = self.words.len() as u64;
        let oldest = end.closed.saturating_sub(room);
        let mut found = Vec::new();
        let mut to = end.at;
        for index in (oldest..end.closed).rev() {
            if to <= since {
                break;
            }
            let word = &self.words[index as usize % self.words.len()];
            let packed = Packed(word.load(Ordering::Relaxed));
            found.push(packed.ending(to, end.newest));
            to = to.minus(packed.length());
        }
        // Acquire: pairs with the Release fence in `write`. If a word above was overwritten,
        // `reserved` below counts the segment that overwrote it.
        fence(Ordering::Acquire);
        let lost = self
            .reserved
            .load(Ordering::Relaxed)
            .saturating_sub(room)
            .saturating_sub(oldest);
        let whole = (end.closed - oldest).saturating_sub(lost);
        found.truncate(whole as usize);
        found.reverse();
        found.extend(
            self.open_segment(&end, seen_at)
                .filter(|open| open.to > since),
        );
        found
    }

    /// The segment that goes on.
    fn open_segment(&self, end: &RingEnd, seen_at: Nanos) -> Option<Segment> {
        let to = end.at.plus(end.open.length()).max(seen_at);
        let is_any = end.open != NOTHING && to > end.at;
        is_any.then_some(Segment {
            from: end.at,
            to,
            ..end.open.ending(to, end.newest)
        })
    }
}

/// The rings of one runtime's workers.
#[derive(Debug)]
pub(crate) struct Recorder {
    rings: Box<[Ring]>,
    pub(crate) lags: Lags,
    /// The time of the last tick at which the runtime was looked at.
    seen_at: AtomicU64,
}

impl Recorder {
    /// Rings for so many workers, as far as the process has room for them.
    pub(crate) fn new(workers: usize, now: Nanos) -> Recorder {
        let granted = grant(&RINGS_IN_USE, workers);
        let rings = std::iter::repeat_with(|| Ring::new(now)).take(granted);
        Recorder {
            rings: rings.collect(),
            lags: Lags::new(granted > 0),
            seen_at: AtomicU64::new(now.0),
        }
    }

    /// The number of workers that are recorded: those with the lowest indices.
    pub(crate) fn workers(&self) -> usize {
        self.rings.len()
    }

    /// The ring of a worker. `None` if it is not recorded.
    pub(crate) fn ring(&self, worker: usize) -> Option<&Ring> {
        self.rings.get(worker)
    }

    /// Notes that all workers have been looked at, or rest.
    pub(crate) fn ticked(&self, at: Nanos) {
        // Relaxed: the open segments may be read a tick older.
        self.seen_at.store(at.0, Ordering::Relaxed);
    }

    /// The segments of a worker that end after `since`, oldest first. The first may begin before
    /// `since`, and `to` of the last grows while it goes on.
    ///
    /// Empty if the worker is not recorded. It takes no lock, and less than a millisecond for the
    /// whole of a full ring.
    pub(crate) fn segments(&self, worker: usize, since: Nanos) -> Vec<Segment> {
        let seen_at = Nanos(self.seen_at.load(Ordering::Relaxed));
        let ring = self.ring(worker);
        ring.map_or_else(Vec::new, |ring| ring.segments(since, seen_at))
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // Relaxed: the number publishes nothing.
        RINGS_IN_USE.fetch_sub(self.rings.len(), Ordering::Relaxed);
    }
}

/// Takes up to so many of the process's rings. Returns how many.
fn grant(in_use: &AtomicUsize, wanted: usize) -> usize {
    let mut granted = 0;
    // Relaxed: the number publishes nothing.
    let taken = in_use.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
        granted = wanted.min(RINGS.saturating_sub(used));
        Some(used + granted)
    });
    taken.map_or(0, |_| granted)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    const BEGIN: Nanos = Nanos(7_000_000_000);

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn packed(lane: Lane, milliseconds: u64, turns: u64) -> Packed {
        let figures = Figures {
            turns,
            ..Figures::default()
        };
        Packed::new(lane, ms(milliseconds), &figures, turns)
    }

    #[test]
    fn a_word_keeps_all_of_a_segment() {
        let figures = Figures {
            cpu: ms(50),
            run_queue: ms(25),
            unseen: 0,
            turns: 12_345,
        };
        let word = Packed::new(Lane::Busy, ms(100), &figures, 0);
        let segment = word.ending(BEGIN.plus(ms(100)), 0);
        let near = |part: Option<Duration>, wanted: Duration| {
            part.is_some_and(|part| part.abs_diff(wanted) <= ms(100) / 254)
        };
        assert_eq!((segment.from, segment.lane), (BEGIN, Lane::Busy));
        assert!(near(segment.cpu, ms(50)) && near(segment.run_queue, ms(25)));
        assert!(near(segment.asleep, ms(25)), "{segment:?}");
        assert_eq!((segment.turns, segment.stall), (12_345, None));
        // More CPU time than time is all of it; what is not known stays so.
        let full = Figures {
            cpu: ms(101),
            ..figures
        };
        let segment = Packed::new(Lane::Busy, ms(100), &full, 0).ending(BEGIN, 0);
        assert_eq!(segment.cpu, Some(ms(100)));
        let partial = Figures {
            unseen: 1,
            ..figures
        };
        let segment = Packed::new(Lane::Busy, ms(100), &partial, 0).ending(BEGIN, 0);
        assert_eq!((segment.cpu, segment.asleep), (None, None));
    }

    #[test]
    fn a_long_segment_loses_less_than_its_unit() {
        let lost = |length: Duration| {
            let word = Packed::new(Lane::Parked, length, &Figures::default(), 0);
            length - word.length()
        };
        assert_eq!(lost(Duration::from_micros(262_143)), Duration::ZERO);
        assert!(lost(Duration::from_micros(262_145)) < ms(2));
        assert!(lost(Duration::from_secs(200)) < ms(2));
        assert!(lost(Duration::from_secs(100_000)) < Duration::from_secs(2));
    }

    #[test]
    fn a_stall_keeps_its_number_though_a_word_has_room_for_its_last_bits_only() {
        let ring = Ring::with_room(4, BEGIN);
        let large = StallId(5 * (COUNT + 1) + 3);
        for number in [large.0 - 7, large.0] {
            let held = packed(Lane::Held, 10, number);
            ring.write(Some(held), NOTHING, Some(StallId(number)));
        }
        let stalls: Vec<_> = ring
            .segments(BEGIN, BEGIN)
            .iter()
            .map(|s| s.stall)
            .collect();
        assert_eq!(stalls, [Some(StallId(large.0 - 7)), Some(large)]);
    }

    #[test]
    fn a_full_ring_forgets_the_oldest_segments_and_keeps_the_times() {
        let ring = Ring::with_room(8, BEGIN);
        for number in 1..=20 {
            ring.write(Some(packed(Lane::Busy, number, number)), NOTHING, None);
        }
        let segments = ring.segments(BEGIN, BEGIN);
        let turns: Vec<_> = segments.iter().map(|segment| segment.turns).collect();
        assert_eq!(turns, (13..=20).collect::<Vec<_>>());
        assert_eq!(segments[0].from, BEGIN.plus(ms((1..=12).sum())));
        assert_eq!(segments[7].to, BEGIN.plus(ms((1..=20).sum())));
        let connected = segments.windows(2).all(|pair| pair[0].to == pair[1].from);
        assert!(connected, "{segments:?}");
    }

    #[test]
    fn segments_since_a_time_are_those_that_end_later() {
        let ring = Ring::with_room(8, BEGIN);
        for number in 1..=4 {
            ring.write(Some(packed(Lane::Busy, 10, number)), NOTHING, None);
        }
        let turns = |since: u64| {
            let segments = ring.segments(BEGIN.plus(ms(since)), BEGIN);
            segments
                .iter()
                .map(|segment| segment.turns)
                .collect::<Vec<_>>()
        };
        assert_eq!(turns(0), [1, 2, 3, 4]);
        assert_eq!(turns(10), [2, 3, 4]);
        assert_eq!(turns(19), [2, 3, 4]);
        assert_eq!(turns(40), [0_u64; 0]);
    }

    #[test]
    fn the_last_segment_grows_with_the_ticks() {
        let recorder = Recorder::new(1, BEGIN);
        let ring = recorder.ring(0).expect("a ring");
        assert_eq!(recorder.segments(0, BEGIN), [], "nothing was seen yet");
        ring.write(None, packed(Lane::Parked, 20, 0), None);
        let to = || recorder.segments(0, BEGIN).last().map(|last| last.to);
        assert_eq!(to(), Some(BEGIN.plus(ms(20))));
        recorder.ticked(BEGIN.plus(ms(90)));
        assert_eq!(to(), Some(BEGIN.plus(ms(90))));
        assert_eq!(recorder.segments(1, BEGIN), [], "there is no such worker");
    }

    #[test]
    fn a_process_has_so_many_rings_and_no_more() {
        let in_use = AtomicUsize::new(0);
        assert_eq!(grant(&in_use, 200), 200);
        assert_eq!(grant(&in_use, 200), RINGS - 200);
        assert_eq!(grant(&in_use, 1), 0);
        assert_eq!(in_use.load(Ordering::Relaxed), RINGS);
    }

    /// The writer counts up as fast as it can, and each segment has its number as its turns and as
    /// its length. Segments that do not follow each other were taken for others.
    #[test]
    fn an_overtaken_reader_drops_what_was_overwritten() {
        let ring = Arc::new(Ring::with_room(16, BEGIN));
        let stop = Arc::new(AtomicBool::new(false));
        let (written, ended) = (ring.clone(), stop.clone());
        let writer = std::thread::spawn(move || {
            let mut number = 0;
            while !ended.load(Ordering::Relaxed) {
                number += 1;
                let length = Duration::from_micros(number % 1000 + 1);
                let figures = Figures {
                    turns: number % 1000,
                    ..Figures::default()
                };
                let closed = Packed::new(Lane::Busy, length, &figures, 0);
                written.write(Some(closed), NOTHING, None);
            }
            number
        });
        let (mut compared, mut overtaken) = (0, 0);
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while compared < 10_000 || overtaken < 100 {
            assert!(
                std::time::Instant::now() < deadline,
                "{compared}, {overtaken}"
            );
            if ring.closed.load(Ordering::Relaxed) < 16 {
                continue;
            }
            let segments = ring.segments(BEGIN, BEGIN);
            overtaken += usize::from(segments.len() < 16);
            for pair in segments.windows(2) {
                assert_eq!((pair[0].turns + 1) % 1000, pair[1].turns, "{segments:?}");
                assert_eq!(pair[0].to, pair[1].from);
                compared += 1;
            }
            for segment in &segments {
                let wanted = Duration::from_micros(segment.turns + 1);
                assert_eq!(segment.to.since(segment.from), wanted, "{segments:?}");
            }
        }
        stop.store(true, Ordering::Relaxed);
        let written = writer.join().expect("the writer lives");
        println!("{written} writes, {compared} pairs read, {overtaken} readings overtaken");
    }

    /// Prints the costs: `cargo test --release --all-features --lib recorder -- --nocapture`.
    #[test]
    fn a_write_and_a_reading_have_a_cost() {
        let ring = Ring::new(BEGIN);
        let (mut closed, writes) = (packed(Lane::Busy, 5, 1), 200_000);
        let begin = std::time::Instant::now();
        for number in 0..writes {
            closed = std::hint::black_box(packed(Lane::Busy, 5, number));
            ring.write(Some(closed), closed, None);
        }
        let a_write = begin.elapsed() / u32::try_from(writes).unwrap();
        let begin = std::time::Instant::now();
        let segments = ring.segments(BEGIN, BEGIN);
        println!(
            "a write {a_write:?}; a reading of {} {:?}",
            segments.len(),
            begin.elapsed()
        );
        let lasts = segments
            .iter()
            .map(|segment| segment.to.since(segment.from));
        let lasts: Duration = lasts.sum();
        assert!(
            lasts >= Duration::from_secs(30),
            "a ring lasts for {lasts:?}"
        );
        assert_eq!(closed.length(), ms(5));
    }
}
