//! The files that show a worker's thread: few are open, and a file that cannot be opened is tried
//! again.
//!
//! *Runs on:* `stall-watchdog`.
//! *Must not:* wait, or open a file at each tick. A worker opens its files when it becomes active,
//! and those of one that rests are closed if others need the room.
//!
//! Descriptors belong to the program, so the detector keeps a small part of them. A part of that
//! room is for workers that seem to be held, since for them the files decide. A worker that finds
//! no room is not blamed: nothing shows that it was not waiting for a CPU.

use crate::clock::{self, Nanos};
use crate::os::{self, ThreadEvidence, ThreadFiles};
use crate::slot::Slot;
use std::rc::Rc;
use std::time::Duration;

/// Descriptors for one thread: its clocks, and its state.
const EACH: u64 = 2;
/// The part of the process's descriptors that the detector takes at most: one in so many.
const PART: u64 = 8;
/// The most threads whose files are open at once, however many descriptors there are.
const MOST: u64 = 512;
/// The fewest, however few descriptors there are.
const FEWEST: u64 = 8;
/// The part of the room that is for workers that seem to be held: one in so many.
const FOR_HELD: u64 = 4;

/// The time between two readings of the process's limit.
const LIMIT_READ_EVERY: Duration = Duration::from_secs(1);

/// The pause after the first failure.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The longest pause. It is as long as workers stay unseen after a shortage.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The pause after a failure, which doubles with each one in a row.
#[derive(Debug, Default)]
pub(super) struct Pause {
    until: Nanos,
    length: Duration,
}

impl Pause {
    pub(super) fn is_over(&self, now: Nanos) -> bool {
        self.until <= now
    }

    fn fail(&mut self, now: Nanos) {
        self.length = (self.length * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        self.until = now.plus(self.length);
    }

    /// Notes whether this has come about. If not, the next try is due after the pause.
    pub(super) fn note<T>(&mut self, result: Option<T>, now: Nanos) -> Option<T> {
        match result {
            Some(_) => *self = Pause::default(),
            None => self.fail(now),
        }
        result
    }
}

/// The most threads whose files may be open in a process that may have so many descriptors.
fn most_of(descriptors: u64) -> u64 {
    (descriptors / PART / EACH).clamp(FEWEST, MOST)
}

/// The number of threads whose files may be open, and of those whose files are.
#[derive(Debug)]
pub(crate) struct Room {
    /// Each thread whose files are open has a clone.
    open: Rc<()>,
    most: u64,
    /// When the process's limit was read.
    read_at: Nanos,
}

impl Room {
    pub(super) fn new(now: Nanos) -> Room {
        Room {
            open: Rc::default(),
            most: most_of(os::descriptor_limit()),
            read_at: now,
        }
    }

    /// Follows the process's limit, which may change.
    pub(super) fn follow_limit(&mut self, now: Nanos) {
        if now.since(self.read_at) >= LIMIT_READ_EVERY {
            self.read_at = now;
            self.most = most_of(os::descriptor_limit());
        }
    }

    fn is_open(&self) -> u64 {
        Rc::strong_count(&self.open) as u64 - 1
    }

    /// The part of the room for any worker.
    fn for_any(&self) -> u64 {
        self.most - self.most.div_ceil(FOR_HELD)
    }

    fn has_place(&self, is_held: bool) -> bool {
        let most = if is_held { self.most } else { self.for_any() };
        self.is_open() < most
    }
}

/// The files of one thread, open or not.
#[derive(Debug, Default)]
pub(super) struct OpenFiles {
    open: Option<(ThreadFiles, Rc<()>)>,
    pause: Pause,
    /// There was no room, or no descriptor, when they were last needed.
    is_blind: bool,
}

impl OpenFiles {
    /// Looks at the thread that has this slot in this tenancy. `None` without its files.
    pub(super) fn look(&mut self) -> Option<ThreadEvidence> {
        let evidence = self.open.as_mut()?.0.look();
        if evidence.is_none() {
            // The thread has exited, or a file must be opened anew.
            self.open = None;
        }
        evidence
    }

    /// Opens the files if they are closed and there is room. Closes them if the room is needed for
    /// workers that seem to be held, and this is none.
    pub(super) fn prepare(&mut self, slot: &Slot, tenancy: u64, room: &Room, is_held: bool) {
        if self.open.is_some() {
            let is_over = room.is_open() > room.for_any();
            self.open.take_if(|_| is_over && !is_held);
            return;
        }
        let now = clock::now();
        if !room.has_place(is_held) {
            self.is_blind = true;
        } else if self.pause.is_over(now) {
            self.open(slot, tenancy, room, now);
        }
    }

    fn open(&mut self, slot: &Slot, tenancy: u64, room: &Room, now: Nanos) {
        let files = ThreadFiles::try_open(slot.tid());
        self.is_blind = files.is_err();
        // A thread gives its slot back before its number is free. So if the slot has the same owner
        // after the files were opened, they are of this owner.
        let is_same = |_: &ThreadFiles| slot.tenancy() == tenancy;
        let files = files.ok().flatten().filter(is_same);
        let files = self.pause.note(files, now);
        self.open = files.map(|files| (files, room.open.clone()));
    }

    /// Whether the thread could be looked at, if there were more descriptors.
    pub(super) fn are_missed(&self) -> bool {
        self.open.is_none() && self.is_blind
    }

    /// Closes the files of a worker that rests, if others need the room.
    pub(super) fn rest(&mut self, room: &Room) {
        self.open.take_if(|_| !room.has_place(false));
    }
}

#[cfg(all(test, target_os = "linux", not(loom)))]
mod tests {
    use super::*;
    use crate::slot;

    fn room(most: u64) -> Room {
        Room {
            most,
            ..Room::new(clock::now())
        }
    }

    /// Visits a worker on the calling thread, and returns whether its files are open then.
    fn visit(files: &mut OpenFiles, room: &Room, is_held: bool) -> bool {
        slot::enrol();
        let slot = slot::mine().expect("a slot");
        files.prepare(slot, slot.tenancy(), room, is_held);
        files.look().is_some()
    }

    #[test]
    fn the_room_is_a_small_part_of_the_process_s_descriptors() {
        let limits = [0, 64, 1024, 4096, u64::MAX];
        assert_eq!(limits.map(most_of), [8, 8, 64, 256, 512]);
    }

    #[test]
    fn a_part_of_the_room_is_for_workers_that_are_held() {
        let room = room(4);
        let mut workers = [(); 5].map(|()| OpenFiles::default());
        let mut visit = |nth: usize, is_held| visit(&mut workers[nth], &room, is_held);
        assert_eq!(
            [0, 1, 2, 3].map(|nth| visit(nth, false)),
            [true, true, true, false]
        );
        assert!(visit(3, true));
        assert!(!visit(4, true), "there is no room at all");
        // One that is not held makes room for the next that is.
        assert!(!visit(0, false));
        assert!(visit(4, true));
    }

    #[test]
    fn a_worker_that_rests_makes_room_only_if_there_is_none() {
        let room = room(4);
        let mut workers = [(); 4].map(|()| OpenFiles::default());
        for files in &mut workers[..2] {
            assert!(visit(files, &room, false));
            files.rest(&room);
            assert!(files.open.is_some());
        }
        assert!(visit(&mut workers[2], &room, false));
        assert!(!visit(&mut workers[3], &room, false));
        for files in &mut workers[..3] {
            files.rest(&room);
        }
        assert_eq!(room.is_open(), 2, "one of them has made room");
        assert!(visit(&mut workers[3], &room, false));
    }

    #[test]
    fn a_failure_is_tried_again_after_a_pause_that_doubles() {
        let (mut pause, mut now) = (Pause::default(), Nanos(1_000_000_000));
        let mut pauses = Vec::new();
        for _ in 0..10 {
            assert!(pause.is_over(now));
            assert_eq!(pause.note(None::<()>, now), None);
            assert!(!pause.is_over(now));
            pauses.push(pause.length.as_millis());
            now = now.plus(pause.length);
        }
        assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1280, 2000, 2000, 2000]);
        assert_eq!(pause.note(Some(()), now), Some(()));
        assert_eq!(pause.length, Duration::ZERO);
    }

    #[test]
    fn files_of_a_later_owner_of_a_slot_are_not_opened() {
        slot::enrol();
        let slot = slot::mine().expect("a slot");
        let (room, mut files) = (room(4), OpenFiles::default());
        files.prepare(slot, slot.tenancy() + 1, &room, true);
        assert!(files.open.is_none());
        assert!(visit(&mut OpenFiles::default(), &room, true));
    }
}
