//! The polls on each thread that a recorder already has, and the export of new ones.
//!
//! *Runs on:* the threads `stall-metrics` and `stall-serve`.
//!
//! An export goes through all slots. A thread's polls count for the runtime that it drives now.

use super::list;
use super::writer::MetricWriter;
use crate::slot::{self, Slot, polls};
use crate::tally::{Batch, Seen};
use std::collections::HashMap;

/// The most timed polls of one runtime in one export: a recorder keeps every value for a while.
const MOST_POLLS: u32 = 4096;

/// The polls that a recorder already has.
#[derive(Default)]
pub(super) struct ExportedPolls {
    slots: HashMap<usize, ExportedSlot>,
}

/// The polls of one slot that a recorder already has.
#[derive(Default)]
struct ExportedSlot {
    polls: u64,
    /// By place. Most places are never used.
    times: HashMap<usize, Seen>,
}

impl ExportedPolls {
    /// Counts all polls so far as exported: slots outlive the watch before this one.
    pub(super) fn up_to_now() -> ExportedPolls {
        let mut exported = ExportedPolls::default();
        for slot in slot::all() {
            let of_slot = exported.slot(slot);
            of_slot.polls = polls_of(slot);
            of_slot.times(slot);
        }
        exported
    }

    fn slot(&mut self, slot: &'static Slot) -> &mut ExportedSlot {
        self.slots
            .entry(std::ptr::from_ref(slot).addr())
            .or_default()
    }

    /// Exports the new polls of one runtime. Returns how many timed polls were left out.
    pub(super) fn export(&mut self, writer: &MetricWriter<'_>, runtime: u64, name: &str) -> u64 {
        let (polls, mut batches) = self.news(runtime);
        writer.add(&list::POLLS, &[name], polls);
        let left_out = thinned(&mut batches);
        for (place, batch) in batches {
            let labels = [name, polls::name_of(place)];
            let mean = batch.mean.as_secs_f64();
            writer.record(&list::POLL_DURATION, &labels, mean, batch.count);
        }
        left_out
    }

    /// The number of new polls of one runtime, and its new timed polls by place.
    fn news(&mut self, runtime: u64) -> (u64, Vec<(usize, Batch)>) {
        let mut polls = 0;
        let mut batches = Vec::new();
        for slot in slot::all() {
            let claim = slot.claim();
            if claim.is_some_and(|(claim, _)| claim.runtime == runtime) {
                let exported = self.slot(slot);
                let now = polls_of(slot);
                polls += now - std::mem::replace(&mut exported.polls, now);
                batches.extend(exported.times(slot));
            }
        }
        (polls, batches)
    }
}

impl ExportedSlot {
    /// The new timed polls, by place.
    fn times(&mut self, slot: &Slot) -> Vec<(usize, Batch)> {
        let mut all = Vec::new();
        for (place, tally) in slot.polls.tallies().iter().enumerate() {
            if tally.is_empty() {
                continue;
            }
            let seen = self.times.entry(place).or_default();
            all.extend(tally.news(seen).map(|batch| (place, batch)));
        }
        all
    }
}

/// Polls on this thread so far: each makes the epoch odd and even again.
fn polls_of(slot: &Slot) -> u64 {
    slot.line.observe().epoch / 2
}

/// Thins out a flood evenly. A batch keeps at least one. Returns how many were left out.
fn thinned(batches: &mut [(usize, Batch)]) -> u64 {
    let count = |batches: &[(usize, Batch)]| -> u64 {
        batches
            .iter()
            .map(|(_, batch)| u64::from(batch.count))
            .sum()
    };
    let all = count(batches);
    if all <= u64::from(MOST_POLLS) {
        return 0;
    }
    for (_, batch) in batches.iter_mut() {
        let share = u64::from(batch.count) * u64::from(MOST_POLLS) / all;
        batch.count = u32::try_from(share).unwrap_or(MOST_POLLS).max(1);
    }
    all - count(batches)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_flood_is_thinned_out_and_rare_lengths_stay() {
        let batch = |count| {
            let mean = Duration::from_millis(1);
            (0, Batch { count, mean })
        };
        let mut flood = [batch(1_000_000), batch(1), batch(3_000_000)];
        let left_out = thinned(&mut flood);
        let counts = flood.map(|(_, batch)| batch.count);
        assert_eq!(counts, [1023, 1, 3071]);
        assert_eq!(left_out + 1023 + 1 + 3071, 4_000_001);
        let mut few = [batch(4000), batch(96)];
        assert_eq!(thinned(&mut few), 0);
        assert_eq!(few, [batch(4000), batch(96)]);
    }
}
