//! The certainty that one poll held its worker: one table (D19–D22).
//!
//! *Runs on:* `stall-watchdog`.
//! *Must not:* keep a state. A verdict follows from the arguments alone.

use crate::report::Certainty;

/// The sign that a hold of the threshold, or longer, is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// One marked poll (D19).
    Mark,
    /// One poll, by its turn (D20).
    Poll,
    /// One sleep of the thread, without a mark and without turns (D21).
    Sleep,
    /// More time than the polls it can consist of may take (D22).
    CountedOut,
}

/// The evidence that the worker belongs to the thread of the hold. A poll in `block_in_place`
/// leaves its worker to another thread, and its own thread may then sleep for any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// Memory shows the worker in the hands of this thread.
    Held,
    /// Only a stack can show it, if there is one.
    ByStack {
        /// The verdict of the stack.
        shown: Option<StackVerdict>,
        /// Polls of this worker have been seen to leave it.
        leaves: bool,
    },
}

/// The verdict of a stack of the worker's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StackVerdict {
    /// The thread is inside the runtime's `block_on`, or its worker's loop: it drives the worker.
    Driving,
    /// The thread is inside `block_in_place`, or idle in the blocking pool: another thread drives
    /// the worker.
    Detached,
    /// The thread waits in the runtime's driver, or to enter it. If the worker is held, this thread
    /// does not hold it.
    Parked,
    /// A part of the stack that is guessed shows the thread where it does not drive the worker. A
    /// guess alone does not silence a marked poll.
    Doubtful,
    /// No stack can be taken, or its functions have no names.
    Inconclusive,
}

impl StackVerdict {
    /// Whether it says more than this one, of the same hold.
    pub(super) fn outweighs(self, known: StackVerdict) -> bool {
        match self {
            StackVerdict::Driving | StackVerdict::Detached | StackVerdict::Parked => true,
            StackVerdict::Doubtful => known == StackVerdict::Inconclusive,
            StackVerdict::Inconclusive => false,
        }
    }
}

/// The certainty that a sign is a stall. `None` if it is none, or if it is not known yet.
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
        // A mark is likely only if polls have been seen to leave their worker (D24).
        (Sign::Mark, Some(StackVerdict::Inconclusive)) => {
            Some(if leaves { Likely } else { Certain })
        }
        (Sign::Mark, Some(StackVerdict::Doubtful)) => Some(Likely),
        (Sign::Sleep, Some(StackVerdict::Doubtful | StackVerdict::Inconclusive))
        | (Sign::Mark | Sign::Sleep, None) => None,
        // Memory showed a poll, and does not show its thread any more.
        (Sign::Poll, _) => None,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn each_sign_is_as_certain_as_its_stack_allows() {
        use Certainty::{Certain, Likely};
        let certain = Some(Certain);
        let [driving, away, parked, doubtful, unclear] = [
            StackVerdict::Driving,
            StackVerdict::Detached,
            StackVerdict::Parked,
            StackVerdict::Doubtful,
            StackVerdict::Inconclusive,
        ]
        .map(Some);
        let (stays, leaves) = (false, true);
        #[rustfmt::skip] // The table is clearer with one row a line.
        let shown = [
            (Sign::Mark,       driving, stays,  certain),
            (Sign::Mark,       driving, leaves, certain),
            (Sign::Mark,       unclear, stays,  certain),
            (Sign::Mark,       unclear, leaves, Some(Likely)),
            (Sign::Mark,       doubtful, stays, Some(Likely)),
            (Sign::Mark,       doubtful, leaves, Some(Likely)),
            (Sign::Mark,       None,    stays,  None),
            (Sign::Mark,       away,    stays,  None),
            (Sign::Mark,       parked,  stays,  None),
            (Sign::Sleep,      driving, leaves, certain),
            (Sign::Sleep,      unclear, stays,  None),
            (Sign::Sleep,      doubtful, leaves, None),
            (Sign::Sleep,      None,    stays,  None),
            (Sign::Sleep,      away,    stays,  None),
            (Sign::CountedOut, None,    leaves, certain),
            (Sign::CountedOut, unclear, leaves, certain),
            (Sign::CountedOut, doubtful, leaves, certain),
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
