//! One wait for a blocking pool as the reporter has it, with the stacks of closures that hold it.
//!
//! *Runs on:* `stall-reporter`.

use crate::clock::wall_clock;
use crate::engine::{PoolNews, PoolStackNews};
use crate::report::{PoolWaitReport, StackSample, add_stack};

/// A wait that goes on.
#[derive(Debug)]
pub(super) struct PoolCase {
    pub(super) latest: PoolNews,
    stacks: Vec<StackSample>,
}

impl PoolCase {
    pub(super) fn new(latest: PoolNews) -> PoolCase {
        PoolCase {
            latest,
            stacks: Vec::new(),
        }
    }

    /// Takes in a later announcement.
    pub(super) fn followed_by(self, latest: PoolNews) -> PoolCase {
        PoolCase { latest, ..self }
    }

    pub(super) fn add(&mut self, news: PoolStackNews) {
        add_stack(
            &mut self.stacks,
            StackSample {
                after: news.after,
                count: 1,
                frames: news.stack.frames,
                certain_frames: news.stack.certain,
                complete: news.stack.complete,
            },
        );
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
