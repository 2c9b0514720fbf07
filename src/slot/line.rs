//! One slot's shared words, and the steps of a mark that write them.
//!
//! *Runs on:* worker threads, inside every poll (`open_quickly`, `close_quickly`, `push`, `pop`);
//! `stall-watchdog`, `stall-reporter` and the signal handler (the readers at the end).
//! *Must not:* do more than loads and stores. The parent module describes the protocol.

use super::entry::{ENTRIES, Entry, Kind, Mark, Shape};
use super::names::{self, Name};
use crate::clock::Nanos;
use crate::sync::{AtomicU32, AtomicU64, Ordering, const_unless_loom, fence};

/// The words that a thread shares with its readers. They are aligned to a pair of 64-byte lines,
/// which processors fetch together. A poll with one mark touches only the first line, and a second
/// one if tokio's hooks tell where the task was spawned.
#[derive(Debug)]
#[repr(C, align(128))]
pub(crate) struct Line {
    epoch: AtomicU64,
    shape: AtomicU64,
    gate: AtomicU32,
    at_end: AtomicU32,
    entries: [AtomicU64; ENTRIES],
    place: AtomicU32,
    stamps: Stamps,
}

/// `gate`: inside a poll with one mark and no request.
const OPEN: u32 = 0;
/// `gate`: between polls, and no request concerns the next one.
const CLOSED: u32 = 1;
/// `gate`: all other cases. The other words decide.
const SLOW: u32 = 2;

/// `at_end`: the end of the poll is not measured.
const NOTHING: u32 = 0;
const TIMED: u32 = 1;
const WANTED: u32 = 2;

/// The words that only slow paths write, hence behind those that every poll touches.
#[derive(Debug)]
struct Stamps {
    started: Stamp,
    allowed: AtomicU32,
    allowed_until: AtomicU64,
    /// 1 if the owner is asked to renew its claim.
    claim_wanted: AtomicU32,
    /// 1 if the owner's next poll takes the slow path as well. Only the owner touches it.
    next_too: AtomicU32,
}

/// Whether a step of a begin or an end applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Step {
    /// The begin or the end is complete.
    Done,
    /// The step does not apply here and has changed nothing; the next step follows.
    Declined,
}

/// The result of closing a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    /// There was no poll: the end has no begin on this thread.
    Nothing,
    /// The poll is over.
    Poll,
    /// The poll is over and its end is to be measured.
    Measure {
        /// Its epoch.
        epoch: u64,
        /// Its start, if that was measured.
        started: Option<Start>,
        /// The watchdog asked for it.
        wanted: bool,
    },
}

/// A first look at a slot, without its marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Observed {
    /// Odd inside a poll.
    pub(crate) epoch: u64,
    /// Inside `allow_blocking`.
    pub(crate) allowed: bool,
    /// The time at which this thread last left `allow_blocking`.
    pub(crate) allowed_until: Option<Nanos>,
}

#[cfg(test)]
impl Observed {
    pub(crate) fn in_poll(self) -> bool {
        self.epoch % 2 == 1
    }
}

/// The marks of one poll, outermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Marks {
    pub(crate) entries: Vec<Entry>,
    /// Marks too deep to be kept; the last entry may then be one that has ended.
    pub(crate) hidden: usize,
    /// Index into the table of names of the place where the task was spawned; 0 for none.
    pub(crate) place: u32,
}

/// A poll that was long, or whose end the watchdog asked for, and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LongPoll {
    pub(crate) epoch: u64,
    /// Its start, if that was measured.
    pub(crate) started: Option<Nanos>,
    /// The time at which the thread last left `allow_blocking`, in this poll or before it.
    pub(crate) allowed_until: Option<Nanos>,
    pub(crate) ended: Nanos,
    /// Index into the table of names; 0 for none.
    pub(crate) name: u32,
}

impl Line {
    const_unless_loom! {
        /// Between polls. The owner renews its claim at its first one.
        pub(crate) fn new() -> Line {
            Line {
                epoch: AtomicU64::new(0),
                shape: AtomicU64::new(0),
                gate: AtomicU32::new(SLOW),
                at_end: AtomicU32::new(NOTHING),
                entries: [
                    AtomicU64::new(0),
                    AtomicU64::new(0),
                    AtomicU64::new(0),
                    AtomicU64::new(0),
                    AtomicU64::new(0),
                    AtomicU64::new(0),
                    AtomicU64::new(0),
                    AtomicU64::new(0),
                    AtomicU64::new(0),
                    AtomicU64::new(0),
                ],
                place: AtomicU32::new(0),
                stamps: Stamps {
                    started: Stamp::new(),
                    allowed: AtomicU32::new(0),
                    allowed_until: AtomicU64::new(0),
                    claim_wanted: AtomicU32::new(1),
                    next_too: AtomicU32::new(0),
                },
            }
        }
    }

    // ── the thread that owns the slot ──

    /// Opens a poll on the quick path: the thread is between polls and there is no request.
    /// Otherwise [`push`](Line::push) is next, and then [`open_slowly`](Line::open_slowly).
    ///
    /// # Cost
    ///
    /// One load and four stores to one cache line; no read-modify-write.
    #[inline]
    pub(crate) fn open_quickly(&self, mark: Mark, id: u64) -> Step {
        // Relaxed: a request that arrives a poll later serves as well.
        if self.gate.load(Ordering::Relaxed) != CLOSED {
            return Step::Declined;
        }
        self.open(mark, id);
        Step::Done
    }

    /// Closes the poll on the quick path: the mark is its only one and there is no request.
    /// Otherwise [`pop`](Line::pop) is next, and then [`close`](Line::close).
    #[inline]
    pub(crate) fn close_quickly(&self) -> Step {
        // Relaxed: a request missed here leaves the end known to within a tick.
        if self.gate.load(Ordering::Relaxed) != OPEN {
            return Step::Declined;
        }
        self.gate.store(CLOSED, Ordering::Relaxed);
        self.pass();
        Step::Done
    }

    #[inline]
    fn open(&self, mark: Mark, id: u64) {
        // Release: pairs with the fence in `marks`. A reader that reads this entry and then looks
        // at the epoch again must see that the poll before this one has closed.
        self.entries[0].store(id, Ordering::Release);
        // Release: the same, and pairs with the Acquire load in `marks`.
        self.shape.store(Shape::one(mark).0, Ordering::Release);
        self.gate.store(OPEN, Ordering::Relaxed);
        let epoch = self.epoch.load(Ordering::Relaxed);
        // Release: pairs with the Acquire loads in `observe` and `marks`: a reader that sees this
        // poll open sees the entry.
        self.epoch.store(epoch + 1, Ordering::Release);
    }

    /// Makes the epoch even: the poll is over.
    #[inline]
    fn pass(&self) {
        let epoch = self.epoch.load(Ordering::Relaxed);
        // Relaxed: stores that must be seen only after the close are later ones, and have Release
        // themselves.
        self.epoch.store(epoch + 1, Ordering::Relaxed);
    }

    /// Opens a poll between polls, with any gate.
    pub(crate) fn open_slowly(&self, mark: Mark, id: u64) {
        self.at_end.store(NOTHING, Ordering::Relaxed);
        self.open(mark, id);
    }

    /// Begins a mark inside a poll. Outside of one, [`open_slowly`](Line::open_slowly) is next.
    #[inline]
    pub(crate) fn push(&self, mark: Mark, id: u64) -> Step {
        if !self.is_in_poll() {
            return Step::Declined;
        }
        // Relaxed: only this thread writes `shape`.
        let shape = Shape(self.shape.load(Ordering::Relaxed));
        // Release, both: as in `open`. The pairing with the Acquire load ensures that this depth is
        // read only together with the entry just stored.
        self.entries[shape.depth().min(ENTRIES - 1)].store(id, Ordering::Release);
        if let Some(shape) = shape.pushed(mark) {
            self.shape.store(shape.0, Ordering::Release);
        }
        self.gate.store(SLOW, Ordering::Relaxed);
        Step::Done
    }

    /// Ends an inner mark of a poll. For the outermost one, and outside of a poll,
    /// [`close`](Line::close) is next.
    #[inline]
    pub(crate) fn pop(&self) -> Step {
        let shape = Shape(self.shape.load(Ordering::Relaxed));
        if shape.depth() <= 1 || !self.is_in_poll() {
            return Step::Declined;
        }
        // Relaxed: a smaller depth shows no entry that was not there.
        self.shape.store(shape.popped().0, Ordering::Relaxed);
        let measured = self.at_end.load(Ordering::Relaxed) != NOTHING;
        if shape.depth() == 2 && !measured && !self.asks_for_slow() {
            self.gate.store(OPEN, Ordering::Relaxed);
        }
        Step::Done
    }

    /// Closes the poll with any number of open marks and any gate. An end without a begin on this
    /// thread (a span guard that moved here) changes nothing.
    pub(crate) fn close(&self) -> Closed {
        if !self.is_in_poll() {
            return Closed::Nothing;
        }
        let epoch = self.epoch.load(Ordering::Relaxed);
        let gate = if self.asks_for_slow() { SLOW } else { CLOSED };
        self.gate.store(gate, Ordering::Relaxed);
        self.pass();
        self.take_end_request(epoch)
    }

    /// Whether the next poll is to take the slow path.
    fn asks_for_slow(&self) -> bool {
        self.stamps.claim_wanted.load(Ordering::Relaxed) != 0
            || self.stamps.next_too.load(Ordering::Relaxed) != 0
    }

    /// Takes the request for the end of this poll.
    fn take_end_request(&self, epoch: u64) -> Closed {
        match self.at_end.load(Ordering::Relaxed) {
            NOTHING => Closed::Poll,
            at_end => {
                self.at_end.store(NOTHING, Ordering::Relaxed);
                Closed::Measure {
                    epoch,
                    started: self.stamps.started.own(epoch),
                    wanted: at_end == WANTED,
                }
            }
        }
    }

    /// The task of the poll that is open, or was open last, if its outermost mark is the task's.
    pub(crate) fn outermost_task(&self) -> Option<u64> {
        let shape = Shape(self.shape.load(Ordering::Relaxed));
        let is_task = shape.depth() > 0 && shape.kind(0) == Kind::Task;
        is_task.then(|| self.entries[0].load(Ordering::Relaxed))
    }

    /// The name of the poll that is open, or was open last, if its outermost mark is one.
    pub(crate) fn outermost_name(&self) -> Option<&'static str> {
        let shape = Shape(self.shape.load(Ordering::Relaxed));
        let number = self.entries[0].load(Ordering::Relaxed);
        if shape.depth() == 0 || shape.kind(0) != Kind::Name {
            return None;
        }
        match names::name(u32::try_from(number).ok()?)? {
            Name::Text(text) => Some(text),
            Name::Place(_) => None,
        }
    }

    /// Between polls the words about marks are the last poll's; only the epoch shows that it is
    /// over.
    fn is_in_poll(&self) -> bool {
        self.epoch.load(Ordering::Relaxed) % 2 == 1
    }

    /// Closes marks that were left open. The caller is between polls.
    pub(crate) fn reset(&self) {
        self.close();
    }

    /// Sets whether the next poll takes the slow path in any case.
    pub(crate) fn keep_slow(&self, next_too: bool) {
        self.stamps
            .next_too
            .store(u32::from(next_too), Ordering::Relaxed);
        if next_too {
            // For the end of this poll, which then keeps the gate so.
            self.gate.store(SLOW, Ordering::Relaxed);
        }
    }

    /// Takes a request to renew the claim; returns whether there was one.
    pub(crate) fn take_claim_request(&self) -> bool {
        if self.stamps.claim_wanted.load(Ordering::Relaxed) == 0 {
            return false;
        }
        // Relaxed: a request in between asks for the same renewal.
        self.stamps.claim_wanted.store(0, Ordering::Relaxed);
        true
    }

    /// Records the start of the open poll; its end is measured too.
    pub(crate) fn stamp_start(&self, start: Start) {
        let epoch = self.epoch.load(Ordering::Relaxed);
        self.stamps.started.write(epoch, start);
        self.at_end.store(TIMED, Ordering::Relaxed);
        self.gate.store(SLOW, Ordering::Relaxed);
    }

    /// Sets the place where the current task was spawned.
    #[allow(dead_code)] // Only tokio's unstable hooks have places.
    #[inline]
    pub(crate) fn set_place(&self, name: u32) {
        // Release: as for the entries in `push`.
        self.place.store(name, Ordering::Release);
    }

    /// Enters a region in which blocking is allowed; regions nest.
    pub(crate) fn allow(&self) {
        let depth = self.stamps.allowed.load(Ordering::Relaxed);
        // Relaxed: it publishes nothing else.
        self.stamps.allowed.store(depth + 1, Ordering::Relaxed);
    }

    /// Leaves the region.
    pub(crate) fn disallow(&self, at: Nanos) {
        let depth = self.stamps.allowed.load(Ordering::Relaxed);
        self.stamps.allowed_until.store(at.0, Ordering::Relaxed);
        // Release: pairs with the Acquire in `observe`: a reader that sees the region left sees the
        // time.
        self.stamps
            .allowed
            .store(depth.saturating_sub(1), Ordering::Release);
    }

    // ── readers ──

    /// Reads enough to see whether the poll has changed since the last look.
    pub(crate) fn observe(&self) -> Observed {
        // Acquire: pairs with the Release in `disallow`.
        let allowed = self.stamps.allowed.load(Ordering::Acquire) != 0;
        let until = self.stamps.allowed_until.load(Ordering::Relaxed);
        Observed {
            // Acquire: pairs with the Release store of `open`.
            epoch: self.epoch.load(Ordering::Acquire),
            allowed,
            allowed_until: (until != 0).then_some(Nanos(until)),
        }
    }

    /// The marks of the poll with this (odd) epoch, or `None` if that poll is over.
    pub(crate) fn marks(&self, epoch: u64) -> Option<Marks> {
        if epoch % 2 == 0 || self.epoch.load(Ordering::Acquire) != epoch {
            return None;
        }
        // Acquire: pairs with the Release in `open` and `push`.
        let shape = Shape(self.shape.load(Ordering::Acquire));
        let entries = self.entries_of(shape);
        let hidden = shape.depth() - entries.len();
        let place = self.place.load(Ordering::Relaxed);
        // Acquire: pairs with the Release stores of `open` and `push`. If any of the values above
        // was written after this poll closed, the load below sees the close.
        fence(Ordering::Acquire);
        (self.epoch.load(Ordering::Relaxed) == epoch).then_some(Marks {
            entries,
            hidden,
            place,
        })
    }

    fn entries_of(&self, shape: Shape) -> Vec<Entry> {
        (0..shape.depth().min(ENTRIES))
            .map(|index| Entry {
                kind: shape.kind(index),
                id: self.entries[index].load(Ordering::Relaxed),
            })
            .collect()
    }

    /// The start of the poll with this epoch, if that was measured.
    pub(crate) fn started(&self, epoch: u64) -> Option<Start> {
        self.stamps.started.read(epoch)
    }

    /// Asks the owner to measure the end of the poll it is in.
    pub(crate) fn ask_for_end(&self) {
        self.at_end.store(WANTED, Ordering::Relaxed);
        self.ask();
    }

    /// Asks the owner to renew its claim at its next begin.
    pub(crate) fn ask_for_claim(&self) {
        self.stamps.claim_wanted.store(1, Ordering::Relaxed);
        self.ask();
    }

    /// Sends the owner to the slow path. Its own store may overwrite this at the same moment; the
    /// request then takes effect a tick later. An early request does no harm: the slow path decides
    /// from the other words.
    fn ask(&self) {
        // Relaxed: if the owner sees this before the request itself, it takes one slow path for
        // nothing.
        self.gate.store(SLOW, Ordering::Relaxed);
    }
}

/// The start of a poll, as the thread itself has seen it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) at: Nanos,
    /// Tokio's number for the task that was polled; 0 outside of one.
    pub(crate) task: u64,
}

/// A start, and the epoch that it belongs to.
#[derive(Debug)]
struct Stamp {
    tag: AtomicU64,
    at: AtomicU64,
    task: AtomicU64,
}

impl Stamp {
    const_unless_loom! {
        fn new() -> Stamp {
            Stamp {
                tag: AtomicU64::new(0),
                at: AtomicU64::new(0),
                task: AtomicU64::new(0),
            }
        }
    }

    fn write(&self, epoch: u64, start: Start) {
        self.tag.store(0, Ordering::Relaxed);
        // Release, both: pairs with the fence in `read`. A reader that has read one of them sees at
        // least the 0 above.
        self.at.store(start.at.0, Ordering::Release);
        self.task.store(start.task, Ordering::Release);
        // Release: pairs with the Acquire in `read`. A reader that sees the tag sees this time or a
        // newer one.
        self.tag.store(epoch, Ordering::Release);
    }

    /// The stamp of this epoch, for the thread that wrote it.
    fn own(&self, epoch: u64) -> Option<Start> {
        let is_its = self.tag.load(Ordering::Relaxed) == epoch;
        is_its.then(|| self.start())
    }

    fn read(&self, epoch: u64) -> Option<Start> {
        if self.tag.load(Ordering::Acquire) != epoch {
            return None;
        }
        let start = self.start();
        fence(Ordering::Acquire);
        (self.tag.load(Ordering::Relaxed) == epoch).then_some(start)
    }

    fn start(&self) -> Start {
        Start {
            at: Nanos(self.at.load(Ordering::Relaxed)),
            task: self.task.load(Ordering::Relaxed),
        }
    }
}

#[cfg(not(loom))]
const _: () = assert!(
    std::mem::offset_of!(Line, entries) + size_of::<AtomicU64>() <= 64
        && std::mem::offset_of!(Line, stamps) <= 128
        && align_of::<Line>() == 128,
    "what every poll touches must share a cache line, and the marks a pair of them"
);

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const SPAN: Mark = Mark::of(Kind::Span(0));

    fn span(id: u64) -> Entry {
        Entry {
            kind: Kind::Span(0),
            id,
        }
    }

    #[test]
    fn a_poll_s_name_can_be_asked_for_when_it_has_just_ended() {
        let line = settled();
        let number = names::number(Name::Text("line::name"));
        assert_eq!(line.open_quickly(Mark::NAME, number.into()), Step::Done);
        assert_eq!(line.push(SPAN, 7), Step::Done);
        assert_eq!(line.pop(), Step::Done);
        assert_eq!(line.close(), Closed::Poll);
        assert_eq!(line.outermost_name(), Some("line::name"));
        begin(&line, 7);
        assert_eq!(line.outermost_name(), None, "a span's is in its registry");
    }

    /// The part of a begin or an end that was not quick.
    #[derive(Debug, PartialEq, Eq)]
    enum Slow {
        Inner,
        Opened,
        Closed(Closed),
    }

    /// Begins a mark in the steps of an owner; `None` if it was quick.
    fn begin(line: &Line, id: u64) -> Option<Slow> {
        if line.open_quickly(SPAN, id) == Step::Done {
            return None;
        }
        if line.push(SPAN, id) == Step::Done {
            return Some(Slow::Inner);
        }
        line.open_slowly(SPAN, id);
        Some(Slow::Opened)
    }

    fn end(line: &Line) -> Option<Slow> {
        if line.close_quickly() == Step::Done {
            return None;
        }
        if line.pop() == Step::Done {
            return Some(Slow::Inner);
        }
        Some(Slow::Closed(line.close()))
    }

    fn measured(epoch: u64, started: Option<Start>, wanted: bool) -> Option<Slow> {
        Some(Slow::Closed(Closed::Measure {
            epoch,
            started,
            wanted,
        }))
    }

    /// A line whose owner has renewed its claim.
    fn settled() -> Line {
        let line = Line::new();
        assert_eq!(begin(&line, 1), Some(Slow::Opened));
        assert!(line.take_claim_request());
        assert_eq!(end(&line), None);
        line
    }

    #[test]
    fn the_outermost_mark_is_the_poll() {
        let line = settled();
        assert_eq!(begin(&line, 7), None);
        assert_eq!(begin(&line, 8), Some(Slow::Inner));
        let inside = line.observe();
        assert!(inside.in_poll());
        assert_eq!(
            line.marks(inside.epoch).unwrap().entries,
            [span(7), span(8)]
        );
        assert_eq!(end(&line), Some(Slow::Inner));
        assert_eq!(line.observe(), inside);
        assert_eq!(end(&line), None, "one mark is left, and nothing is asked");
        assert!(!line.observe().in_poll());
        assert_eq!(line.marks(inside.epoch), None);
    }

    #[test]
    fn a_quick_end_and_a_slow_one_come_to_the_same() {
        for quickly in [true, false] {
            let line = settled();
            assert_eq!(line.open_quickly(SPAN, 7), Step::Done);
            if quickly {
                assert_eq!(line.close_quickly(), Step::Done);
            } else {
                assert_eq!(line.close(), Closed::Poll);
            }
            assert_eq!(line.observe().epoch, 4);
            let next = line.open_quickly(SPAN, 8);
            assert_eq!(next, Step::Done, "the next poll opens quickly");
            assert_eq!(line.marks(5).unwrap().entries, [span(8)]);
        }
    }

    #[test]
    fn an_end_without_a_begin_is_passed_over() {
        for line in [Line::new(), settled()] {
            let before = line.observe();
            assert_eq!(end(&line), Some(Slow::Closed(Closed::Nothing)));
            assert_eq!(line.observe(), before);
            begin(&line, 3);
            assert_eq!(line.marks(before.epoch + 1).unwrap().entries, [span(3)]);
        }
    }

    #[test]
    fn deep_marks_keep_the_outermost_and_the_innermost_name() {
        let line = Line::new();
        for id in 1..=ENTRIES as u64 + 3 {
            begin(&line, id);
        }
        let marks = line.marks(1).unwrap();
        assert_eq!(marks.hidden, 3);
        assert_eq!(marks.entries[0], span(1));
        assert_eq!(*marks.entries.last().unwrap(), span(ENTRIES as u64 + 3));
        for _ in 1..=ENTRIES + 3 {
            assert!(line.observe().in_poll());
            end(&line);
        }
        assert_eq!(line.observe().epoch, 2);
    }

    #[test]
    fn an_end_is_measured_once_if_it_is_wanted_or_the_poll_was_timed() {
        let line = settled();
        begin(&line, 1);
        line.ask_for_end();
        assert_eq!(end(&line), measured(3, None, true));
        begin(&line, 1);
        assert_eq!(end(&line), None);
        begin(&line, 1);
        let start = Start {
            at: Nanos(50),
            task: 3,
        };
        line.stamp_start(start);
        assert_eq!((line.started(7), line.started(5)), (Some(start), None));
        assert_eq!(end(&line), measured(7, Some(start), false));
    }

    #[test]
    fn the_end_of_an_inner_mark_leaves_the_next_poll_on_the_slow_path() {
        let line = settled();
        begin(&line, 1);
        line.keep_slow(true);
        begin(&line, 2);
        assert_eq!(end(&line), Some(Slow::Inner));
        assert_eq!(end(&line), Some(Slow::Closed(Closed::Poll)));
        assert_eq!(line.open_quickly(SPAN, 3), Step::Declined);
        // The control: without the request the next poll is quick.
        line.keep_slow(false);
        begin(&line, 1);
        begin(&line, 2);
        end(&line);
        end(&line);
        assert_eq!(line.open_quickly(SPAN, 3), Step::Done);
    }

    #[test]
    fn a_request_inside_inner_marks_is_served_at_the_end_of_the_poll() {
        let line = settled();
        begin(&line, 1);
        begin(&line, 2);
        line.ask_for_end();
        assert_eq!(end(&line), Some(Slow::Inner));
        assert_eq!(end(&line), measured(3, None, true));
    }

    #[test]
    fn an_owner_asked_for_its_claim_gets_a_slow_begin_at_the_next_poll() {
        let line = settled();
        begin(&line, 1);
        line.ask_for_claim();
        assert_eq!(end(&line), Some(Slow::Closed(Closed::Poll)));
        assert_eq!(begin(&line, 2), Some(Slow::Opened));
        assert!(line.take_claim_request());
        assert_eq!(end(&line), None);
        assert_eq!(begin(&line, 3), None);
        line.keep_slow(true);
        assert_eq!(end(&line), Some(Slow::Closed(Closed::Poll)));
        assert_eq!(begin(&line, 4), Some(Slow::Opened));
        line.keep_slow(false);
        assert_eq!(end(&line), None);
        assert_eq!(begin(&line, 5), None);
    }

    #[test]
    fn an_end_wanted_too_late_asks_nothing_of_the_next_poll() {
        let line = settled();
        line.ask_for_end();
        assert_eq!(begin(&line, 1), Some(Slow::Opened));
        assert_eq!(end(&line), None);
    }

    #[test]
    fn reset_closes_leaked_marks_and_only_those() {
        let line = Line::new();
        begin(&line, 1);
        begin(&line, 2);
        line.reset();
        assert_eq!(line.observe().epoch, 2);
        line.reset();
        assert_eq!(line.observe().epoch, 2);
        begin(&line, 3);
        assert_eq!(line.marks(3).unwrap().entries, [span(3)]);
    }
}
