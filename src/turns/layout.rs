//! The places of the words in tokio's memory, and what the words at these places say.
//!
//! *Runs on:* `stall-watchdog`; `stall-turns` makes a layout.
//! *Must not:* read memory itself: bytes go in, and the identity of a poll comes out.

use super::{PollId, Stage};
use crate::os::memory::Piece;

/// The places of the words, for one flavor of runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// From a thread's anchor to the word with the number of its task.
    pub(super) task: i64,
    /// From a thread's anchor to the pointer to its context.
    pub(super) context: i64,
    /// From the context to the pointer to the core.
    pub(super) core: usize,
    /// From the core to the count of turns, 32 bits.
    pub(super) turn: usize,
    /// From the core to its own count of parks and unparks, 64 bits.
    pub(super) parks: usize,
    /// From the core to the time at which it began to work through its queue: seconds, and
    /// nanoseconds.
    pub(super) resumed: usize,
    /// From the core to the byte that marks the "next" slot as used up; only on a multi-thread
    /// runtime.
    pub(super) last: Option<LastFlag>,
    /// The word that distinguishes a task from the queue from one from the "next" slot.
    pub(super) call: Option<CallWord>,
}

/// The byte that shows that no more tasks of the "next" slot are polled in this turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LastFlag {
    pub(super) at: usize,
    /// Its value during the third poll from the "next" slot.
    pub(super) value: u8,
}

/// The return address of the scheduler's call of the task, on the worker's stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CallWord {
    /// From the context to this word.
    pub(super) at: i64,
    /// Its value for the task from the queue.
    pub(super) queue: u64,
    /// Its value for a task from the "next" slot.
    pub(super) next: u64,
}

impl Layout {
    /// The distance of the first byte from the anchor, and the number of bytes.
    pub(super) fn near_anchor(&self) -> (i64, usize) {
        let first = self.task.min(self.context);
        let last = self.task.max(self.context) + 8;
        (first, usize::try_from(last - first).unwrap_or(0))
    }

    /// The place of the first byte in the core, and the number of bytes.
    pub(super) fn in_core(&self) -> (usize, usize) {
        let flag = self.last.map_or(self.turn, |flag| flag.at);
        let first = self.turn.min(self.parks).min(self.resumed).min(flag);
        let last = (self.turn + 4)
            .max(self.parks + 8)
            .max(self.resumed + 12)
            .max(flag + 1);
        (first, last - first)
    }

    fn is_multi_thread(&self) -> bool {
        self.last.is_some()
    }

    /// Whether this is the first poll since the worker was parked in that turn. A multi-thread
    /// worker begins another turn when it wakes; on `current_thread` the future of `block_on` comes
    /// first, in the same turn.
    pub(super) fn is_first(&self, poll: PollId, parked: u32) -> bool {
        let turns = poll.turn.wrapping_sub(parked);
        if self.is_multi_thread() {
            turns == 1 && poll.stage == Stage::Queue
        } else {
            turns == 0
        }
    }

    pub(super) fn poll_id(
        &self,
        near: &AnchorWords,
        core: &CoreWords,
        call: Option<u64>,
    ) -> PollId {
        let stage = self.stage(core.last, call);
        let task = match stage {
            _ if !self.is_multi_thread() => 0,
            Stage::Queue | Stage::Last => u64::from(near.task != 0),
            Stage::Next | Stage::Unclear => near.task,
        };
        PollId {
            turn: core.turn,
            stage,
            task,
            resumed: match self.is_multi_thread() {
                true => (0, 0),
                false => core.resumed,
            },
        }
    }

    fn stage(&self, last: bool, call: Option<u64>) -> Stage {
        if !self.is_multi_thread() {
            return Stage::Queue;
        }
        if last {
            return Stage::Last;
        }
        match (self.call, call) {
            (Some(known), Some(call)) if call == known.queue => Stage::Queue,
            (Some(known), Some(call)) if call == known.next => Stage::Next,
            _ => Stage::Unclear,
        }
    }
}

/// The words near a thread's anchor.
pub(super) struct AnchorWords {
    pub(super) context: u64,
    pub(super) task: u64,
}

impl AnchorWords {
    pub(super) fn of(piece: &Piece, layout: &Layout) -> Option<AnchorWords> {
        let (from, _) = layout.near_anchor();
        let at = |place: i64| usize::try_from(place - from).ok();
        Some(AnchorWords {
            context: piece.word(at(layout.context)?)?,
            task: piece.word(at(layout.task)?)?,
        })
    }
}

/// The words of the core.
pub(super) struct CoreWords {
    pub(super) turn: u32,
    pub(super) parks: u64,
    pub(super) resumed: (u64, u32),
    last: bool,
}

impl CoreWords {
    pub(super) fn of(piece: &Piece, layout: &Layout) -> Option<CoreWords> {
        let (from, _) = layout.in_core();
        let last = match layout.last {
            Some(flag) => *piece.bytes()?.get(flag.at - from)? == flag.value,
            None => false,
        };
        Some(CoreWords {
            turn: piece.half_word(layout.turn - from)?,
            parks: piece.word(layout.parks - from)?,
            resumed: (
                piece.word(layout.resumed - from)?,
                piece.half_word(layout.resumed + 8 - from)?,
            ),
            last,
        })
    }
}
