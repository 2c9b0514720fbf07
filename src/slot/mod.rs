//! Slots: each thread publishes its open poll in a record of its own, and others read it without
//! stopping the thread.
//!
//! *Runs on:* worker threads, inside every poll (the marks); `stall-watchdog`, `stall-reporter` and
//! the signal handler (reading).
//! *Must not:* allocate, lock, call the system or panic in a mark. A thread's first mark is the
//! exception: it takes a slot, which allocates. After a timed poll beyond the threshold, the owner
//! tries a lock and keeps a record.
//!
//! # States
//!
//! `epoch` is even between polls and odd during one. It only grows, by one, and only the thread
//! that owns the slot writes it. Two equal odd readings are therefore the same poll. A poll opens
//! with the outermost mark and closes with its end; marks in between push and pop names on a short
//! stack.
//!
//! # The gate
//!
//! Nearly every poll has one mark, and no request concerns it. So one word, the gate, decides at
//! each begin and each end whether the quick path will do. CLOSED lets a poll open quickly, OPEN
//! lets it close quickly. In all other cases (an inner mark, a timed poll, a request, a thread
//! without a slot, an end without a begin) the gate is SLOW, and the slow path decides from the
//! other words. Only the owner stores OPEN or CLOSED. Any thread may store SLOW at any time: the
//! worst result is one slow begin or end.
//!
//! # Who may touch which field
//!
//! | field | its thread | watchdog | reporter | signal handler |
//! |---|---|---|---|---|
//! | `epoch` | writes | reads | reads | reads |
//! | `shape`, `entries`, `place` | writes | reads | reads | – |
//! | `gate` | writes, and reads first in each begin and end | writes SLOW | – | – |
//! | `at_end` | sets and clears | sets WANTED: "measure this poll's end" | – | – |
//! | `claim_wanted` | sets with its first slot, clears | sets: "renew your claim" | – | – |
//! | `started` | writes in slow paths | reads | – | – |
//! | `next_too`, `pace`, `leaves_silently` | reads and writes | – | – | – |
//! | `allowed`, `allowed_until` | writes, and reads for a record | reads | – | reads, unused |
//! | `claim`, `claimed_at` | writes in slow paths | reads | – | – |
//! | `loops`, `all_polls` | writes between polls | reads | – | – |
//! | `polls` | writes at the end of a timed poll | – | – | – |
//! | `tenancy` | counts up when it takes and releases | reads | reads | reads |
//! | `tid`, `anchor` | writes when it takes the slot | reads | – | – |
//! | `stack` | writes when it takes the slot | – | – | reads |
//! | `about` | locks when it takes the slot, else tries | tries | locks | – |
//!
//! The thread that asks for the stacks of all workers reads `tenancy`, `tid`, `claim` and the name
//! in `about`. So does `stall-explainer`, which looks for runtimes that nobody watches, and sets
//! `claim_wanted` like the watchdog. Exporters of metrics read `epoch`, `claim` and `polls`.
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
//!    Release, then the tag with Release; a reader looks at the tag before and after. A stamp whose
//!    tag is not the epoch asked for belongs to another poll.
//!
//! # What a reader can see
//!
//! *The poll closes during the reading.* The second look at the epoch differs, and the reading is
//! discarded.
//! *Names change during the reading, inside one poll.* Each entry is one of the names that stood in
//! that place during this poll. During a stall nothing changes. A reader that needs the exact names
//! looks twice.
//! *The thread exits during the reading.* Slots are released, never freed. The next owner counts
//! `tenancy` up, and its epochs go on where the old ones stopped.
//! *The watchdog asks for the end just as the poll ends.* The owner may miss the request; the end
//! is then known to within a tick. It may also find the request one poll late: the record then
//! carries the later epoch, which no reader is waiting for.
//!
//! `loom.rs` checks this protocol: one owner and one reader, with polls, nested names and requests
//! in every interleaving.

mod claims;
mod enrol;
mod entry;
mod line;
pub(crate) mod polls;
mod registry;

pub(crate) mod names;

pub(crate) use claims::{Claims, collect_claims};
#[cfg(feature = "tower")]
pub(crate) use enrol::own_poll;
#[allow(unused_imports)] // Where no turns are counted.
pub(crate) use enrol::{anchor, own_task};
pub(crate) use enrol::{
    begin, end_quickly, enrol, keep_polls_longer_than, mine, raw_id, reset_marks,
    reset_marks_in_this_process,
};
pub(crate) use entry::{Kind, Mark, SOURCES};
pub(crate) use line::{LongPoll, Marks};
pub(crate) use registry::{Claim, PollKey, Slot, Thread, all, claimers};

pub(crate) mod timing;
pub use timing::PollTiming;

#[cfg(all(test, loom))]
mod loom;
