//! One slot's shared words and the two marks that write them.
//!
//! *Runs on:* worker threads, inside every poll (`push`, `pop`); watchdog and reporter (the rest).
//! *Here:* loads and stores only. The protocol is written down in the parent module.

use super::entry::{ENTRIES, Entry, Kind, Shape};
use crate::clock::Nanos;
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// The words a thread shares with its readers. Padded to two 64-byte lines, since processors fetch
/// those in pairs.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Line {
    epoch: AtomicU64,
    shape: AtomicU64,
    until_timed: AtomicU32,
    at_end: AtomicU32,
    entries: [AtomicU64; ENTRIES],
    place: AtomicU32,
    stamps: Stamps,
}

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
}

/// What a begin found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    /// A mark inside a poll.
    Inner,
    /// A new poll.
    Poll,
    /// A new poll whose start is to be measured, or somebody asked this thread to look around.
    Slow,
}

/// What an end found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    /// A mark inside a poll, or one that had no begin on this thread.
    Inner,
    /// The poll is over.
    Poll,
    /// The poll is over and its end is to be measured.
    Measure {
        /// Its epoch.
        epoch: u64,
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
    pub(crate) fn new() -> Line {
        Line {
            epoch: AtomicU64::new(0),
            shape: AtomicU64::new(0),
            until_timed: AtomicU32::new(0),
            at_end: AtomicU32::new(0),
            entries: std::array::from_fn(|_| AtomicU64::new(0)),
            place: AtomicU32::new(0),
            stamps: Stamps {
                started: Stamp::new(),
                allowed: AtomicU32::new(0),
                allowed_until: AtomicU64::new(0),
                look: AtomicU32::new(1),
            },
        }
    }

    // ── the thread that owns the slot ──

    /// Begins a mark; the outermost one opens a poll.
    ///
    /// # Cost
    ///
    /// Two stores for an inner mark, four for the outermost, all to this line; no read-modify-write.
    #[inline]
    pub(crate) fn push(&self, kind: Kind, id: u64) -> Opened {
        // Relaxed: only this thread writes `shape`.
        let shape = Shape(self.shape.load(Ordering::Relaxed));
        let depth = shape.depth();
        let place = depth.min(ENTRIES - 1);
        // Release: pairs with the fence in `marks`. Who reads this entry and then looks at the epoch
        // again must see that the poll before this one has closed.
        self.entries[place].store(id, Ordering::Release);
        if let Some(shape) = shape.pushed(kind) {
            // Release: pairs with the Acquire load in `marks`, so that this depth is read only
            // together with the entry just stored.
            self.shape.store(shape.0, Ordering::Release);
        }
        if depth != 0 {
            return Opened::Inner;
        }
        let epoch = self.epoch.load(Ordering::Relaxed);
        // Release: pairs with the Acquire loads in `observe` and `marks`; the entry is visible to
        // whoever sees this poll open.
        self.epoch.store(epoch + 1, Ordering::Release);
        // Relaxed: a request that arrives a poll later serves as well.
        match self.until_timed.load(Ordering::Relaxed) {
            0 => Opened::Slow,
            left => {
                self.until_timed.store(left - 1, Ordering::Relaxed);
                Opened::Poll
            }
        }
    }

    /// Ends the innermost mark; the outermost one closes the poll. An end without a begin on this
    /// thread (a span guard that moved here) is passed over.
    #[inline]
    pub(crate) fn pop(&self) -> Closed {
        let shape = Shape(self.shape.load(Ordering::Relaxed));
        match shape.depth() {
            0 => Closed::Inner,
            1 => {
                // Relaxed, like the store below: a smaller depth shows no entry that was not there.
                self.shape.store(0, Ordering::Relaxed);
                self.close()
            }
            _ => {
                self.shape.store(shape.popped().0, Ordering::Relaxed);
                Closed::Inner
            }
        }
    }

    #[inline]
    fn close(&self) -> Closed {
        let epoch = self.epoch.load(Ordering::Relaxed);
        // Relaxed: whatever must be seen only after the close is itself stored with Release, later.
        self.epoch.store(epoch + 1, Ordering::Relaxed);
        // Relaxed: a request missed here leaves the end known to within a tick.
        let at_end = self.at_end.load(Ordering::Relaxed);
        if at_end == NOTHING {
            return Closed::Poll;
        }
        self.at_end.store(NOTHING, Ordering::Relaxed);
        Closed::Measure {
            epoch,
            wanted: at_end == WANTED,
        }
    }

    /// Closes whatever marks were left open. The thread is known to be between polls.
    pub(crate) fn reset(&self) {
        if self.shape.load(Ordering::Relaxed) != 0 {
            self.shape.store(0, Ordering::Relaxed);
            self.close();
        }
    }

    /// Sets in how many polls the next start is measured: 0 is the next one.
    pub(crate) fn time_after(&self, polls: u32) {
        self.until_timed.store(polls, Ordering::Relaxed);
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
        self.stamps.allowed.store(depth + 1, Ordering::Release);
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
            // Acquire: pairs with the Release stores of `push` and `close`.
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
        // Acquire: pairs with the Release in `push`.
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
        // Acquire: pairs with the Release stores of `push`. If any of the values above was written
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
    }

    /// Asks the owner to look around at its next begin: which worker is it now?
    pub(crate) fn ask_to_look_around(&self) {
        // Relaxed, both: if the owner sees the second first, it looks around a poll later.
        self.stamps.look.store(1, Ordering::Relaxed);
        self.until_timed.store(0, Ordering::Relaxed);
    }
}

/// A time and the epoch it belongs to.
#[derive(Debug)]
struct Stamp {
    tag: AtomicU64,
    at: AtomicU64,
}

impl Stamp {
    fn new() -> Stamp {
        Stamp {
            tag: AtomicU64::new(0),
            at: AtomicU64::new(0),
        }
    }

    fn write(&self, epoch: u64, at: Nanos) {
        self.tag.store(0, Ordering::Relaxed);
        // Release: pairs with the fence in `read`. Who has read this time sees at least the 0 above.
        self.at.store(at.0, Ordering::Release);
        // Release: pairs with the Acquire in `read`. Who sees the tag sees this time or a newer one.
        self.tag.store(epoch, Ordering::Release);
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
    std::mem::offset_of!(Line, stamps) <= 128 && align_of::<Line>() == 128,
    "what every poll touches must share one pair of cache lines"
);

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn span(id: u64) -> Entry {
        Entry {
            kind: Kind::Span(0),
            id,
        }
    }

    #[test]
    fn the_outermost_mark_is_the_poll() {
        let line = Line::new();
        line.time_after(9);
        assert_eq!(line.push(Kind::Span(0), 7), Opened::Poll);
        assert_eq!(line.push(Kind::Span(0), 8), Opened::Inner);
        let inside = line.observe();
        assert!(inside.in_poll());
        assert_eq!(
            line.marks(inside.epoch).unwrap().entries,
            [span(7), span(8)]
        );
        assert_eq!(line.pop(), Closed::Inner);
        assert_eq!(line.observe(), inside);
        assert_eq!(line.pop(), Closed::Poll);
        assert!(!line.observe().in_poll());
        assert_eq!(line.marks(inside.epoch), None);
    }

    #[test]
    fn an_end_without_a_begin_is_passed_over() {
        let line = Line::new();
        assert_eq!(line.pop(), Closed::Inner);
        assert_eq!(line.observe().epoch, 0);
    }

    #[test]
    fn deep_marks_keep_the_outermost_and_the_innermost_name() {
        let line = Line::new();
        for id in 1..=ENTRIES as u64 + 3 {
            line.push(Kind::Span(0), id);
        }
        let marks = line.marks(1).unwrap();
        assert_eq!(marks.hidden, 3);
        assert_eq!(marks.entries[0], span(1));
        assert_eq!(*marks.entries.last().unwrap(), span(ENTRIES as u64 + 3));
    }

    #[test]
    fn an_end_is_measured_once_if_it_is_wanted_or_the_poll_was_timed() {
        let line = Line::new();
        line.time_after(9);
        line.push(Kind::Name, 1);
        line.ask_for_end();
        assert_eq!(
            line.pop(),
            Closed::Measure {
                epoch: 1,
                wanted: true
            }
        );
        line.push(Kind::Name, 1);
        assert_eq!(line.pop(), Closed::Poll);
        line.push(Kind::Name, 1);
        line.stamp_start(Nanos(50));
        assert_eq!((line.started(5), line.started(3)), (Some(Nanos(50)), None));
        assert_eq!(
            line.pop(),
            Closed::Measure {
                epoch: 5,
                wanted: false
            }
        );
    }

    #[test]
    fn reset_closes_leaked_marks_and_only_those() {
        let line = Line::new();
        line.push(Kind::Span(0), 1);
        line.push(Kind::Span(0), 2);
        line.reset();
        assert_eq!(line.observe().epoch, 2);
        line.reset();
        assert_eq!(line.observe().epoch, 2);
        line.push(Kind::Span(0), 3);
        assert_eq!(line.marks(3).unwrap().entries, [span(3)]);
    }
}
