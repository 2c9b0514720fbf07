//! A mailbox: the buffer for one stack, and the protocol between the requester and the signal
//! handler.
//!
//! *Runs on:* the requester, mostly `stall-watchdog` (`request`, `fill`, `collect`, `withdraw`);
//! the stalled thread, in the signal handler (`answer`); the reader of the stack, mostly
//! `stall-explainer` (`read`, and `withdraw` in the end).
//! *Must not:* wait. Each step may find that the other side was first.
//!
//! ```text
//!         request            answer              answer          withdraw
//!  FREE ──────────▶ REQUESTED ──────▶ FILLING ──────────▶ FULL ──────────▶ FREE
//!   ▲ (CLAIMED while  │                  │ withdraw
//!   │  it is written) │ withdraw         ▼
//!   └─────────────────┘              ABANDONED ──▶ FREE, by the handler
//! ```
//!
//! A requester that needs no answer goes from CLAIMED to FULL at once (`fill`).
//!
//! The word of state also counts rounds. A handler that comes late, or that runs for a signal from
//! elsewhere, finds another round or another thread's number and does nothing. The letter belongs
//! to the requester while CLAIMED, to the handler while FILLING or ABANDONED, and to the requester
//! again while FULL. In the other states it has no owner.

use crate::sync::{AtomicU32, AtomicU64, Ordering, UnsafeCell};

/// A letter, and the word that gives it to the requester or to the handler.
#[derive(Debug)]
pub(crate) struct Mailbox<L> {
    /// The round in the upper bits, the state in the lower three.
    word: AtomicU64,
    /// The thread that is to answer, by the kernel's number.
    tid: AtomicU32,
    letter: UnsafeCell<L>,
}

const FREE: u64 = 0;
const CLAIMED: u64 = 1;
const REQUESTED: u64 = 2;
const FILLING: u64 = 3;
const FULL: u64 = 4;
const ABANDONED: u64 = 5;

const STATE_BITS: u32 = 3;
const STATE: u64 = (1 << STATE_BITS) - 1;

/// One use of a mailbox, from the request to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Round(u64);

impl Round {
    fn of(word: u64) -> Round {
        Round(word >> STATE_BITS)
    }

    fn word(self, state: u64) -> u64 {
        self.0 << STATE_BITS | state
    }

    fn next(self) -> Round {
        Round(self.0.wrapping_add(1) & (u64::MAX >> STATE_BITS))
    }
}

// SAFETY: only the owner by the protocol reaches the letter, one thread at a time, and each
// hand-over is a Release store read by an Acquire load.
#[allow(unsafe_code)]
unsafe impl<L: Send> Sync for Mailbox<L> {}

impl<L> Mailbox<L> {
    #[cfg(not(loom))]
    pub(crate) const fn new(letter: L) -> Mailbox<L> {
        Mailbox {
            word: AtomicU64::new(FREE),
            tid: AtomicU32::new(0),
            letter: UnsafeCell::new(letter),
        }
    }

    #[cfg(loom)]
    pub(crate) fn new(letter: L) -> Mailbox<L> {
        Mailbox {
            word: AtomicU64::new(FREE),
            tid: AtomicU32::new(0),
            letter: UnsafeCell::new(letter),
        }
    }

    /// Requests an answer from this thread. `write` puts the question into the letter. `None` if
    /// the mailbox is in use.
    pub(crate) fn request(&self, tid: u32, write: impl FnOnce(&mut L)) -> Option<Round> {
        let (round, ()) = self.claim(write)?;
        self.tid.store(tid, Ordering::Relaxed);
        // Release: pairs with the Acquire in `take`: the handler sees the question, and the number.
        self.word.store(round.word(REQUESTED), Ordering::Release);
        Some(round)
    }

    /// Fills the letter without an answer from another thread. `None` if the mailbox is in use, or
    /// if `write` returns false.
    pub(crate) fn fill(&self, write: impl FnOnce(&mut L) -> bool) -> Option<Round> {
        let (round, is_filled) = self.claim(write)?;
        if is_filled {
            // Release: pairs with the Acquire in `collect`.
            self.word.store(round.word(FULL), Ordering::Release);
            return Some(round);
        }
        // Release: pairs with the Acquire in `claim`.
        self.word.store(round.next().word(FREE), Ordering::Release);
        None
    }

    /// Takes the mailbox and writes into the letter. `None` if it is in use.
    #[allow(unsafe_code)]
    fn claim<R>(&self, write: impl FnOnce(&mut L) -> R) -> Option<(Round, R)> {
        let word = self.word.load(Ordering::Relaxed);
        if word & STATE != FREE {
            return None;
        }
        let round = Round::of(word);
        self.word
            // Acquire: pairs with the Release that freed the mailbox: the letter's last use is
            // over.
            .compare_exchange(
                word,
                round.word(CLAIMED),
                Ordering::Acquire,
                Ordering::Relaxed,
            )
            .ok()?;
        // SAFETY: the exchange has claimed the mailbox, so no other thread reaches the letter.
        let written = self
            .letter
            .with_mut(|letter| write(unsafe { &mut *letter }));
        Some((round, written))
    }

    /// Answers a request for thread `tid`. The signal handler on that thread calls it. Returns
    /// whether the letter has been handed over.
    ///
    /// # Signal safety
    ///
    /// Uses atomics, and calls `fill`.
    #[allow(unsafe_code)]
    pub(crate) fn answer(&self, tid: u32, fill: impl FnOnce(&mut L)) -> bool {
        let Some(round) = self.take(tid) else {
            return false;
        };
        // SAFETY: the exchange in `take` gave the letter to this thread, until the one below.
        self.letter.with_mut(|letter| fill(unsafe { &mut *letter }));
        let filling = round.word(FILLING);
        // Release: pairs with the Acquire in `collect`.
        let full = self.word.compare_exchange(
            filling,
            round.word(FULL),
            Ordering::Release,
            Ordering::Relaxed,
        );
        if full.is_err() {
            // The round was withdrawn meanwhile, so the handler frees the mailbox.
            // Release: pairs with the Acquire in `claim`.
            self.word.store(round.next().word(FREE), Ordering::Release);
        }
        full.is_ok()
    }

    /// Takes the letter of a request for thread `tid`. `None` if there is no such request, or not
    /// any more.
    fn take(&self, tid: u32) -> Option<Round> {
        // Acquire: pairs with the Release in `request`: the number read next is of this round, or
        // newer.
        let word = self.word.load(Ordering::Acquire);
        if word & STATE != REQUESTED || self.tid.load(Ordering::Relaxed) != tid {
            return None;
        }
        let round = Round::of(word);
        self.word
            // Acquire: pairs with the Release in `request`, again: this is the read that takes the
            // letter.
            .compare_exchange(
                word,
                round.word(FILLING),
                Ordering::Acquire,
                Ordering::Relaxed,
            )
            .ok()?;
        Some(round)
    }

    /// Whether the answer has arrived. From then on the letter belongs to the requester.
    pub(crate) fn collect(&self, round: Round) -> bool {
        // Acquire: pairs with the Release in `answer`.
        self.word.load(Ordering::Acquire) == round.word(FULL)
    }

    /// Reads the letter. `None` unless [`collect`](Self::collect) returns true.
    #[allow(unsafe_code)]
    pub(crate) fn read<R>(&self, round: Round, read: impl FnOnce(&L) -> R) -> Option<R> {
        self.collect(round).then(|| {
            // SAFETY: in FULL of this round the handler is done, and only the requester, which
            // holds the round, can end this state.
            self.letter.with(|letter| read(unsafe { &*letter }))
        })
    }

    /// Ends the round, in any state. It is the requester's last call for the round.
    pub(crate) fn withdraw(&self, round: Round) {
        let free = round.next().word(FREE);
        if self
            .word
            // Release: pairs with the Acquire in `claim`.
            .compare_exchange(
                round.word(REQUESTED),
                free,
                Ordering::Release,
                Ordering::Relaxed,
            )
            .is_ok()
        {
            return;
        }
        // Relaxed if it succeeds: nothing is handed over, the handler keeps the letter and frees
        // the mailbox.
        // Acquire if not: pairs with the handler's Release of FULL, whose writing comes before the
        // next one's.
        let abandoned = self.word.compare_exchange(
            round.word(FILLING),
            round.word(ABANDONED),
            Ordering::Relaxed,
            Ordering::Acquire,
        );
        if abandoned.is_err() {
            // The state is FULL, so the letter is the requester's.
            // Release: pairs with the Acquire in `claim`: our reading is over.
            self.word.store(free, Ordering::Release);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_answer_reaches_the_one_who_asked() {
        let mailbox = Mailbox::new(0);
        let round = mailbox.request(7, |letter| *letter = 1).unwrap();
        assert!(!mailbox.collect(round));
        assert!(!mailbox.answer(8, |_| panic!("another thread was asked")));
        assert!(mailbox.answer(7, |letter| *letter += 41));
        assert!(!mailbox.answer(7, |_| panic!("it has been answered")));
        assert_eq!(mailbox.read(round, |letter| *letter), Some(42));
        assert_eq!(mailbox.request(7, |_| ()), None, "it is in use");
        mailbox.withdraw(round);
        assert_eq!(mailbox.read(round, |letter| *letter), None);
        assert!(mailbox.request(7, |_| ()).is_some());
    }

    #[test]
    fn a_letter_may_be_filled_without_an_answer() {
        let mailbox = Mailbox::new(0);
        assert_eq!(mailbox.fill(|_| false), None);
        let write = |letter: &mut i32| {
            *letter = 42;
            true
        };
        let round = mailbox.fill(write).expect("a free mailbox");
        assert!(!mailbox.answer(0, |_| panic!("nobody was asked")));
        assert_eq!(mailbox.read(round, |letter| *letter), Some(42));
        assert_eq!(mailbox.fill(write), None, "it is in use");
        mailbox.withdraw(round);
        assert_eq!(mailbox.read(round, |letter| *letter), None);
        assert!(mailbox.fill(write).is_some());
    }

    #[test]
    fn a_late_answer_finds_nothing_to_answer() {
        let mailbox = Mailbox::new(0);
        let round = mailbox.request(7, |_| ()).unwrap();
        mailbox.withdraw(round);
        assert!(!mailbox.answer(7, |_| panic!("it was withdrawn")));
        let next = mailbox.request(9, |_| ()).unwrap();
        assert_ne!(round, next);
        assert!(!mailbox.answer(7, |_| panic!("this is for another")));
    }

    #[test]
    fn a_letter_given_up_while_it_is_written_is_freed_by_its_writer() {
        let mailbox = Mailbox::new(0);
        let round = mailbox.request(7, |_| ()).unwrap();
        let answered = mailbox.answer(7, |_| mailbox.withdraw(round));
        assert!(!answered);
        assert!(mailbox.request(7, |_| ()).is_some());
    }
}
