//! Slots: how a thread says "I am inside a poll, and this is it", and how others read that without
//! stopping it.
//!
//! *Runs on:* worker threads, inside every poll (the marks); watchdog and reporter (reading).
//! *Here:* in a mark no allocation, no lock, no system call, no panic.
//!
//! # States
//!
//! `epoch` is even between polls and odd during one. It only grows, by one, and only the thread that
//! owns the slot writes it. Two equal odd readings are therefore the same poll. A poll opens with the
//! outermost mark and closes with its end; marks in between push and pop names on a short stack.
//!
//! # The gate
//!
//! Nearly every poll has one mark, and nobody wants anything of it. So one word says for each begin and
//! each end whether that is all: *closed* lets a poll open quickly, *open* lets it close quickly. Anything
//! else (an inner mark, a poll that is timed, a request, a thread without a slot, an end without a begin)
//! has the gate at *look closer*, and what to do is found out from the other words. Only the owner says
//! open or closed; who asks for something says *look closer*, which is never wrong, only slower.
//!
//! # Who may touch what
//!
//! | field | its thread | watchdog | reporter |
//! |---|---|---|---|
//! | `epoch`, `shape`, `entries`, `place` | writes | reads | reads |
//! | `gate` | writes, and looks at it first in each begin and end | writes "look closer" | – |
//! | `at_end` | sets and clears | sets: "measure this poll's end" | – |
//! | `look` | clears | sets: "which worker are you now?" | – |
//! | start stamp, long polls, claim | writes, in slow paths only | reads | reads |
//! | thread id and name | writes when it takes the slot | reads | reads |
//!
//! # Orderings
//!
//! The slot is a seqlock whose data is valid *while* the epoch is odd. Three pairings carry it:
//!
//! 1. Begin writes the entries, then the epoch with Release. A reader that loads the odd epoch with
//!    Acquire sees the entries of that poll or newer ones.
//! 2. Every later store to an entry is Release. A reader that has read such a newer value and then
//!    passes an Acquire fence must see, in its second look at the epoch, that the old poll has
//!    closed, because the close came before the store on the owner's side.
//! 3. The start stamp is a small seqlock of its own: the tag goes to zero, the time is stored with
//!    Release, then the tag with Release; a reader looks at the tag before and after. A stamp whose tag
//!    is not the epoch asked for belongs to another poll.
//!
//! # What a reader can see
//!
//! *The poll closes while we read.* The second look at the epoch differs; we have read nothing.
//! *Names change while we read, inside one poll.* Each entry is one of the names that stood in that
//! place during this poll. During a stall nothing changes; who needs the exact names looks twice.
//! *The thread exits while we read.* Slots are released, never freed. The next owner counts
//! `tenancy` up, and its epochs go on where the old ones stopped.
//! *The watchdog asks for the end just as the poll ends.* The owner may miss the request; the end is
//! then known to within a tick. It may also find the request one poll late: the record then carries
//! the later epoch, and nobody asks for that one.
//!
//! Checked by `loom.rs`: one owner and one reader, polls, nested names, and requests in every
//! interleaving.

mod drivers;
mod enrol;
mod entry;
mod line;
pub(crate) mod polls;
mod registry;

pub(crate) mod names;

pub(crate) use drivers::{Drivers, collect_drivers};
pub(crate) use enrol::{
    anchor, begin, end_quickly, enrol, keep_polls_longer_than, mine, own_task, raw_id, reset_marks,
};
pub(crate) use entry::{Kind, Mark, SOURCES};
pub(crate) use line::{LongPoll, Marks};
pub(crate) use registry::{Claim, Slot, all};

pub(crate) mod timing;
pub use timing::PollTiming;

#[cfg(all(test, loom))]
mod loom;
