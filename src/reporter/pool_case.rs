//! One wait for a blocking pool as the reporter has it, with the stacks of closures that hold it.
//!
//! *Runs on:* `stall-reporter`.

use crate::clock::wall_clock;
use crate::engine::{PoolNews, PoolStack};
use crate::report::{PoolWaitReport, StackSample, add_stack};

/// A wait that goes on.
#[derive(Debug)]
pub(super) struct PoolCase {
    pub(super) latest: PoolNews,
    stacks: Vec<StackSample>,
}

impl PoolCase {
    /// The wait after news of it, with what is known of it so far.
    pub(super) fn followed_by(known: Option<PoolCase>, mut latest: PoolNews) -> PoolCase {
        let mut stacks = known.map(|known| known.stacks).unwrap_or_default();
        for PoolStack { after, stack } in latest.stacks.drain(..) {
            let sample = StackSample {
                after,
                count: 1,
                frames: stack.frames,
                certain_frames: stack.certain,
                complete: stack.complete,
                asleep: false,
            };
            add_stack(&mut stacks, sample);
        }
        PoolCase { latest, stacks }
    }

    pub(super) fn report(&self) -> PoolWaitReport {
        let news = &self.latest;
        PoolWaitReport {
            id: news.id,
            phase: news.phase,
            runtime: news.runtime.name.clone(),
            started_at: wall_clock(news.since),
            waited: news.waited,
            stacks: self.stacks.clone(),
        }
    }
}
