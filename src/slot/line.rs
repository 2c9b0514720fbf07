//! One slot's shared words and the two marks that write them.
//!
//! *Runs on:* worker threads, inside every poll (`push`, `pop`); watchdog and reporter (the rest).
//! *Here:* loads and stores only. The protocol is written down in the parent module.

use super::entry::{ENTRIES, Entry, Kind, Mark, Shape};
use super::names::{self, Name};
use crate::clock::Nanos;
use crate::sync::{AtomicU32, AtomicU64, Ordering, const_unless_loom, fence};

/// The words a thread shares with its readers. Padded to two 64-byte lines, since processors fetch
/// those in pairs; what a poll without further marks touches lies in the first of them.
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

/// `gate`: inside a poll with one mark, of which nothing is asked.
const OPEN: u32 = 0;
/// `gate`: between polls, and nothing is asked of the next one.
const CLOSED: u32 = 1;
/// `gate`: anything else. The other words say what.
const LOOK_CLOSER: u32 = 2;

/// `at_end`: what the end of the poll is to do.
const NOTHING: u32 = 0;
const TIMED: u32 = 1;
const WANTED: u32 = 2;

/// Written in slow paths only, hence behind the words that every poll touches.
#[derive(Debug)]
struct Stamps {
    started: Stamp,
    allowed: AtomicU32,
    allowed_until: AtomicU64,
    /// 1 if the owner is asked to look around.
    look: AtomicU32,
    /// 1 if the owner has chosen to measure its next poll as well. Only the owner touches it.
    next_too: AtomicU32,
}

/// What an end found, if it was a poll's.
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
        /// When it started, if that was measured.
        started: Option<Nanos>,
        /// Somebody asked for it.
        wanted: bool,
    },
}

/// A glance at a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Observed {
    /// Odd inside a poll.
    pub(crate) epoch: u64,
    /// Inside `allow_blocking`.
    pub(crate) allowed: bool,
    /// When `allow_blocking` was last left on this thread.
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

/// A poll that was long, or whose end somebody asked for, and when it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LongPoll {
    pub(crate) epoch: u64,
    /// When it started, if that was measured.
    pub(crate) started: Option<Nanos>,
    pub(crate) ended: Nanos,
    /// Index into the table of names; 0 for none.
    pub(crate) name: u32,
}

impl Line {
    const_unless_loom! {
        /// Between polls; the owner is to look around at its first one.
        pub(crate) fn new() -> Line {
            Line {
                epoch: AtomicU64::new(0),
                shape: AtomicU64::new(0),
                gate: AtomicU32::new(LOOK_CLOSER),
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
                    look: AtomicU32::new(1),
                    next_too: AtomicU32::new(0),
                },
            }
        }
    }

    // ── the thread that owns the slot ──

    /// Opens a poll, if that is all there is to do: the thread is between polls and nobody wants more of
    /// it. Otherwise returns false and has done nothing; [`push`](Line::push) is next, and then
    /// [`open_slowly`](Line::open_slowly).
    ///
    /// # Cost
    ///
    /// One load and four stores to one cache line; no read-modify-write.
    #[inline]
    #[must_use]
    pub(crate) fn open_quickly(&self, mark: Mark, id: u64) -> bool {
        // Relaxed: a request that arrives a poll later serves as well.
        if self.gate.load(Ordering::Relaxed) != CLOSED {
            return false;
        }
        self.open(mark, id);
        true
    }

    /// Closes the poll, if that is all there is to do: the mark is its only one and nobody wants more.
    /// Otherwise returns false and has done nothing; [`pop`](Line::pop) is next, and then
    /// [`close`](Line::close).
    #[inline]
    #[must_use]
    pub(crate) fn close_quickly(&self) -> bool {
        // Relaxed: a request missed here leaves the end known to within a tick.
        if self.gate.load(Ordering::Relaxed) != OPEN {
            return false;
        }
        self.gate.store(CLOSED, Ordering::Relaxed);
        self.pass();
        true
    }

    #[inline]
    fn open(&self, mark: Mark, id: u64) {
        // Release: pairs with the fence in `marks`. Who reads this entry and then looks at the epoch
        // again must see that the poll before this one has closed.
        self.entries[0].store(id, Ordering::Release);
        // Release: the same, and pairs with the Acquire load in `marks`.
        self.shape.store(Shape::one(mark).0, Ordering::Release);
        self.gate.store(OPEN, Ordering::Relaxed);
        let epoch = self.epoch.load(Ordering::Relaxed);
        // Release: pairs with the Acquire loads in `observe` and `marks`; the entry is visible to
        // whoever sees this poll open.
        self.epoch.store(epoch + 1, Ordering::Release);
    }

    /// From the poll to what is between it and the next one.
    #[inline]
    fn pass(&self) {
        let epoch = self.epoch.load(Ordering::Relaxed);
        // Relaxed: whatever must be seen only after the close is itself stored with Release, later.
        self.epoch.store(epoch + 1, Ordering::Relaxed);
    }

    /// Opens a poll between polls, whatever the gate says.
    pub(crate) fn open_slowly(&self, mark: Mark, id: u64) {
        self.at_end.store(NOTHING, Ordering::Relaxed);
        self.open(mark, id);
    }

    /// Begins a mark inside a poll. Outside of one, returns false and has done nothing.
    #[inline]
    #[must_use]
    pub(crate) fn push(&self, mark: Mark, id: u64) -> bool {
        if !self.is_in_poll() {
            return false;
        }
        // Relaxed: only this thread writes `shape`.
        let shape = Shape(self.shape.load(Ordering::Relaxed));
        // Release, both: as in `open`. The pairing with the Acquire load makes that this depth is read
        // only together with the entry just stored.
        self.entries[shape.depth().min(ENTRIES - 1)].store(id, Ordering::Release);
        if let Some(shape) = shape.pushed(mark) {
            self.shape.store(shape.0, Ordering::Release);
        }
        self.gate.store(LOOK_CLOSER, Ordering::Relaxed);
        true
    }

    /// Ends a mark inside a poll, but not its outermost one: then it returns false and has done nothing, as it
    /// does outside of a poll; [`close`](Line::close) is next.
    #[inline]
    #[must_use]
    pub(crate) fn pop(&self) -> bool {
        let shape = Shape(self.shape.load(Ordering::Relaxed));
        if shape.depth() <= 1 || !self.is_in_poll() {
            return false;
        }
        // Relaxed: a smaller depth shows no entry that was not there.
        self.shape.store(shape.popped().0, Ordering::Relaxed);
        if shape.depth() == 2 && self.at_end.load(Ordering::Relaxed) == NOTHING {
            self.gate.store(OPEN, Ordering::Relaxed);
        }
        true
    }

    /// Closes the poll, however many marks are open in it, and whatever the gate says. An end without a begin
    /// on this thread (a span guard that moved here) is passed over.
    pub(crate) fn close(&self) -> Closed {
        if !self.is_in_poll() {
            return Closed::Nothing;
        }
        let epoch = self.epoch.load(Ordering::Relaxed);
        let asked = self.stamps.look.load(Ordering::Relaxed) != 0
            || self.stamps.next_too.load(Ordering::Relaxed) != 0;
        let gate = if asked { LOOK_CLOSER } else { CLOSED };
        self.gate.store(gate, Ordering::Relaxed);
        self.pass();
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

    /// Between polls the words about marks are the last poll's: only the epoch tells.
    fn is_in_poll(&self) -> bool {
        self.epoch.load(Ordering::Relaxed) % 2 == 1
    }

    /// Closes whatever marks were left open. The thread is known to be between polls.
    pub(crate) fn reset(&self) {
        self.close();
    }

    /// Says whether the next poll is to be looked at closer in any case.
    pub(crate) fn look_closer_next_time(&self, closer: bool) {
        self.stamps
            .next_too
            .store(u32::from(closer), Ordering::Relaxed);
        if closer {
            // For the end of this poll, which then leaves the gate so.
            self.gate.store(LOOK_CLOSER, Ordering::Relaxed);
        }
    }

    /// Whether the owner was asked to look around since it last did.
    pub(crate) fn is_to_look_around(&self) -> bool {
        if self.stamps.look.load(Ordering::Relaxed) == 0 {
            return false;
        }
        // Relaxed: a request in between is one for the same look.
        self.stamps.look.store(0, Ordering::Relaxed);
        true
    }

    /// Says when the poll now open started, and that its end is wanted too.
    pub(crate) fn stamp_start(&self, at: Nanos) {
        let epoch = self.epoch.load(Ordering::Relaxed);
        self.stamps.started.write(epoch, at);
        self.at_end.store(TIMED, Ordering::Relaxed);
        self.gate.store(LOOK_CLOSER, Ordering::Relaxed);
    }

    /// Names the place where the current task was spawned.
    #[allow(dead_code)] // Only tokio's unstable hooks tell places.
    #[inline]
    pub(crate) fn set_place(&self, name: u32) {
        // Release: as for the entries in `push`.
        self.place.store(name, Ordering::Release);
    }

    /// Enters a region whose blocking is allowed; regions nest.
    pub(crate) fn allow(&self) {
        let depth = self.stamps.allowed.load(Ordering::Relaxed);
        // Relaxed: nothing is published with it.
        self.stamps.allowed.store(depth + 1, Ordering::Relaxed);
    }

    /// Leaves the region.
    pub(crate) fn disallow(&self, at: Nanos) {
        let depth = self.stamps.allowed.load(Ordering::Relaxed);
        self.stamps.allowed_until.store(at.0, Ordering::Relaxed);
        // Release: pairs with the Acquire in `observe`: who sees the region left sees when.
        self.stamps
            .allowed
            .store(depth.saturating_sub(1), Ordering::Release);
    }

    // ── readers ──

    /// A glance: enough to tell whether anything has happened since the last one.
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
        let depth = shape.depth();
        let kept = depth.min(ENTRIES);
        let entries = (0..kept)
            .map(|index| Entry {
                kind: shape.kind(index),
                id: self.entries[index].load(Ordering::Relaxed),
            })
            .collect();
        let place = self.place.load(Ordering::Relaxed);
        // Acquire: pairs with the Release stores of `open` and `push`. If any of the values above was written
        // after this poll closed, the load below sees the close.
        fence(Ordering::Acquire);
        (self.epoch.load(Ordering::Relaxed) == epoch).then_some(Marks {
            entries,
            hidden: depth - kept,
            place,
        })
    }

    /// When the poll with this epoch started, if that was measured.
    pub(crate) fn started(&self, epoch: u64) -> Option<Nanos> {
        self.stamps.started.read(epoch)
    }

    /// Asks the owner to measure the end of the poll it is in.
    pub(crate) fn ask_for_end(&self) {
        self.at_end.store(WANTED, Ordering::Relaxed);
        self.ask();
    }

    /// Asks the owner to look around at its next begin: which worker is it now?
    pub(crate) fn ask_for_claim(&self) {
        self.stamps.look.store(1, Ordering::Relaxed);
        self.ask();
    }

    /// Whatever the owner does, it may overwrite this at the same moment, and the request is heard a tick
    /// later. It cannot be led astray: behind the gate it looks for itself.
    fn ask(&self) {
        // Relaxed: if the owner sees this before what is asked, it looks closer for nothing, once.
        self.gate.store(LOOK_CLOSER, Ordering::Relaxed);
    }
}

/// A time and the epoch it belongs to.
#[derive(Debug)]
struct Stamp {
    tag: AtomicU64,
    at: AtomicU64,
}

impl Stamp {
    const_unless_loom! {
        fn new() -> Stamp {
            Stamp {
                tag: AtomicU64::new(0),
                at: AtomicU64::new(0),
            }
        }
    }

    fn write(&self, epoch: u64, at: Nanos) {
        self.tag.store(0, Ordering::Relaxed);
        // Release: pairs with the fence in `read`. Who has read this time sees at least the 0 above.
        self.at.store(at.0, Ordering::Release);
        // Release: pairs with the Acquire in `read`. Who sees the tag sees this time or a newer one.
        self.tag.store(epoch, Ordering::Release);
    }

    /// For the thread that wrote it.
    fn own(&self, epoch: u64) -> Option<Nanos> {
        let is_its = self.tag.load(Ordering::Relaxed) == epoch;
        is_its.then(|| Nanos(self.at.load(Ordering::Relaxed)))
    }

    fn read(&self, epoch: u64) -> Option<Nanos> {
        if self.tag.load(Ordering::Acquire) != epoch {
            return None;
        }
        let at = self.at.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        (self.tag.load(Ordering::Relaxed) == epoch).then_some(Nanos(at))
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
        assert!(line.open_quickly(Mark::NAME, number.into()));
        assert!(line.push(SPAN, 7) && line.pop());
        assert_eq!(line.close(), Closed::Poll);
        assert_eq!(line.outermost_name(), Some("line::name"));
        begin(&line, 7);
        assert_eq!(line.outermost_name(), None, "a span's is in its registry");
    }

    /// What the gate was closed to.
    #[derive(Debug, PartialEq, Eq)]
    enum Slow {
        Inner,
        Opened,
        Closed(Closed),
    }

    /// As the owner does it; `None` if it was quick.
    fn begin(line: &Line, id: u64) -> Option<Slow> {
        if line.open_quickly(SPAN, id) {
            return None;
        }
        if line.push(SPAN, id) {
            return Some(Slow::Inner);
        }
        line.open_slowly(SPAN, id);
        Some(Slow::Opened)
    }

    fn end(line: &Line) -> Option<Slow> {
        if line.close_quickly() {
            return None;
        }
        if line.pop() {
            return Some(Slow::Inner);
        }
        Some(Slow::Closed(line.close()))
    }

    fn measured(epoch: u64, started: Option<Nanos>, wanted: bool) -> Option<Slow> {
        Some(Slow::Closed(Closed::Measure {
            epoch,
            started,
            wanted,
        }))
    }

    /// A line whose owner has looked around.
    fn settled() -> Line {
        let line = Line::new();
        assert_eq!(begin(&line, 1), Some(Slow::Opened));
        assert!(line.is_to_look_around());
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
    fn a_quick_end_and_a_closer_one_come_to_the_same() {
        for close in [Line::close_quickly, |line: &Line| {
            line.close() == Closed::Poll
        }] {
            let line = settled();
            assert!(line.open_quickly(SPAN, 7));
            assert!(close(&line));
            assert_eq!(line.observe().epoch, 4);
            assert!(line.open_quickly(SPAN, 8), "the next poll opens quickly");
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
        line.stamp_start(Nanos(50));
        assert_eq!((line.started(7), line.started(5)), (Some(Nanos(50)), None));
        assert_eq!(end(&line), measured(7, Some(Nanos(50)), false));
    }

    #[test]
    fn what_is_asked_inside_inner_marks_is_done_at_the_end_of_the_poll() {
        let line = settled();
        begin(&line, 1);
        begin(&line, 2);
        line.ask_for_end();
        assert_eq!(end(&line), Some(Slow::Inner));
        assert_eq!(end(&line), measured(3, None, true));
    }

    #[test]
    fn who_is_asked_to_look_around_does_so_at_the_next_poll() {
        let line = settled();
        begin(&line, 1);
        line.ask_for_claim();
        assert_eq!(end(&line), Some(Slow::Closed(Closed::Poll)));
        assert_eq!(begin(&line, 2), Some(Slow::Opened));
        assert!(line.is_to_look_around());
        assert_eq!(end(&line), None);
        assert_eq!(begin(&line, 3), None);
        line.look_closer_next_time(true);
        assert_eq!(end(&line), Some(Slow::Closed(Closed::Poll)));
        assert_eq!(begin(&line, 4), Some(Slow::Opened));
        line.look_closer_next_time(false);
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
