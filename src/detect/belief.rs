//! How sure it is that one poll held its worker: one table.
//!
//! *Runs on:* the watchdog thread.
//! *Must not:* remember anything. What a verdict rests on is all in its arguments.

use crate::report::Certainty;

/// What a hold of the threshold, or longer, is a sign of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// One marked poll.
    Mark,
    /// One poll, by what memory shows of it.
    Poll,
    /// One sleep of the thread, without a mark, where memory shows nothing.
    Sleep,
    /// More time than all polls that it can consist of may take.
    CountedOut,
}

/// What is known of whose the worker is. A poll that enters `block_in_place` leaves its worker to another
/// thread, and its own thread may then sleep as long as it likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// Memory shows the worker in the hands of this thread.
    Held,
    /// Only a stack can tell, if there is one.
    ByStack {
        /// What it has shown.
        shown: Option<StackVerdict>,
        /// Polls of this worker have been seen to leave it.
        leaves: bool,
    },
}

/// What the stack of the worker's thread has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StackVerdict {
    /// The thread is inside the runtime's `block_on`, or its worker's loop: it drives the worker.
    Driving,
    /// It is inside `block_in_place`, or idle in the blocking pool: the worker is another thread's.
    Detached,
    /// It waits in the runtime's driver for something to do, or for its turn there: if the worker is held,
    /// this thread is not what holds it.
    Parked,
    /// There is no stack to be had, or its functions have no names.
    Inconclusive,
}

/// Whether a sign is a stall, and how sure that is. `None`: not one, or not to be told yet.
pub(super) fn belief(sign: Sign, whose: Whose) -> Option<Certainty> {
    use Certainty::{Certain, Likely};
    let (shown, leaves) = match whose {
        Whose::Held => return Some(Certain),
        Whose::ByStack { shown, leaves } => (shown, leaves),
    };
    match (sign, shown) {
        (_, Some(StackVerdict::Detached | StackVerdict::Parked)) => None,
        (Sign::CountedOut, _) => Some(Certain),
        (Sign::Mark | Sign::Sleep, Some(StackVerdict::Driving)) => Some(Certain),
        // A mark is believed until there is reason to doubt it.
        (Sign::Mark, Some(StackVerdict::Inconclusive)) => {
            Some(if leaves { Likely } else { Certain })
        }
        (Sign::Sleep, Some(StackVerdict::Inconclusive)) | (Sign::Mark | Sign::Sleep, None) => None,
        // Memory has shown a poll, and does not show its thread any more.
        (Sign::Poll, _) => None,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn each_sign_is_believed_as_far_as_it_is_known_whose_the_worker_is() {
        use Certainty::{Certain, Likely};
        let certain = Some(Certain);
        let [driving, away, parked, unclear] = [
            StackVerdict::Driving,
            StackVerdict::Detached,
            StackVerdict::Parked,
            StackVerdict::Inconclusive,
        ]
        .map(Some);
        let (stays, leaves) = (false, true);
        #[rustfmt::skip] // A table reads as one.
        let shown = [
            (Sign::Mark,       driving, stays,  certain),
            (Sign::Mark,       driving, leaves, certain),
            (Sign::Mark,       unclear, stays,  certain),
            (Sign::Mark,       unclear, leaves, Some(Likely)),
            (Sign::Mark,       None,    stays,  None),
            (Sign::Mark,       away,    stays,  None),
            (Sign::Mark,       parked,  stays,  None),
            (Sign::Sleep,      driving, leaves, certain),
            (Sign::Sleep,      unclear, stays,  None),
            (Sign::Sleep,      None,    stays,  None),
            (Sign::Sleep,      away,    stays,  None),
            (Sign::CountedOut, None,    leaves, certain),
            (Sign::CountedOut, unclear, leaves, certain),
            (Sign::CountedOut, away,    leaves, None),
            (Sign::Poll,       driving, stays,  None),
        ];
        for (sign, shown, leaves, expected) in shown {
            let whose = Whose::ByStack { shown, leaves };
            assert_eq!(belief(sign, whose), expected, "{sign:?} {whose:?}");
        }
        for sign in [Sign::Mark, Sign::Poll, Sign::Sleep, Sign::CountedOut] {
            assert_eq!(belief(sign, Whose::Held), certain, "{sign:?}");
        }
    }
}
