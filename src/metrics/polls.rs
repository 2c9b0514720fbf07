//! What a recorder has been told of the polls on each thread.
//!
//! *Runs on:* the thread `stall-metrics`, and the server's.
//! *Here:* walks all slots. A thread's polls are those of the runtime it drives now.

use super::list;
use super::out::Out;
use crate::slot::{self, Slot, polls};
use crate::tally::{Batch, Seen};
use std::collections::HashMap;

/// Timed polls of one runtime that are passed on each time: a recorder keeps every value for a while.
const MOST: u32 = 4096;

/// What a recorder has been told of polls.
#[derive(Default)]
pub(super) struct Told {
    slots: HashMap<usize, SlotTold>,
}

#[derive(Default)]
struct SlotTold {
    polls: u64,
    /// By place; most are never used.
    times: HashMap<usize, Seen>,
}

impl Told {
    /// As if everything so far had been told: slots outlive the watch that was before this one.
    pub(super) fn everything() -> Told {
        let mut told = Told::default();
        for slot in slot::all() {
            let slot_told = told.slot(slot);
            slot_told.polls = polls_of(slot);
            slot_told.times(slot);
        }
        told
    }

    fn slot(&mut self, slot: &'static Slot) -> &mut SlotTold {
        self.slots
            .entry(std::ptr::from_ref(slot).addr())
            .or_default()
    }

    /// Tells what is new of one runtime. Returns how many timed polls were left out.
    pub(super) fn tell(&mut self, out: &Out<'_>, runtime: u64, name: &str) -> u64 {
        let mut polls = 0;
        let mut batches = Vec::new();
        for slot in slot::all() {
            if slot
                .claim()
                .is_some_and(|(claim, _)| claim.runtime == runtime)
            {
                let told = self.slot(slot);
                let now = polls_of(slot);
                polls += now - std::mem::replace(&mut told.polls, now);
                batches.extend(told.times(slot));
            }
        }
        out.add(&list::POLLS, &[name], polls);
        let kept = thinned(&mut batches);
        for (place, batch) in batches {
            let labels = [name, polls::name_of(place)];
            out.record(
                &list::POLL_DURATION,
                &labels,
                batch.mean.as_secs_f64(),
                batch.count,
            );
        }
        kept
    }
}

impl SlotTold {
    /// The timed polls that are new, by place.
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

fn polls_of(slot: &Slot) -> u64 {
    slot.line.observe().epoch / 2
}

/// Thins out a flood evenly; what there is one of stays. Returns how many were left out.
fn thinned(batches: &mut [(usize, Batch)]) -> u64 {
    let count = |batches: &[(usize, Batch)]| -> u64 {
        batches
            .iter()
            .map(|(_, batch)| u64::from(batch.count))
            .sum()
    };
    let all = count(batches);
    if all <= u64::from(MOST) {
        return 0;
    }
    for (_, batch) in batches.iter_mut() {
        let share = u64::from(batch.count) * u64::from(MOST) / all;
        batch.count = u32::try_from(share).unwrap_or(MOST).max(1);
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
