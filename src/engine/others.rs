//! The runtimes that nobody watches, as far as marks show them.
//!
//! *Runs on:* `stall-explainer`, and the thread that a start makes for a round. Guards and
//! exporters read the list.
//! *Must not:* cost a poll anything. A marked poll claims its worker anyway, once per thread and
//! when it is asked to.
//!
//! A claim stays where it is when its runtime is gone. So a runtime is listed only after its
//! threads have renewed a claim in two rounds: it polls, and was not about to be watched.

use crate::clock::{self, Nanos};
use crate::slot::{Claims, Slot};
use std::collections::BTreeMap;
use std::fmt;

/// Rounds in which a runtime must have polled before it is listed.
const ROUNDS: u32 = 2;

/// Names of threads in the text of a runtime.
const NAMES: usize = 3;

/// A runtime of this process that polls marked tasks, and that nobody watches; from
/// [`Coverage::other_runtimes`](crate::Coverage). [`Guard::add`](crate::Guard::add) adds it to a
/// watch.
///
/// `Display` writes it with the names of its first threads.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct OtherRuntime {
    /// Tokio's number for it.
    pub id: u64,
    /// The names of its threads that have polled a marked task, in order; `""` for one without a
    /// name.
    pub threads: Vec<String>,
}

impl fmt::Display for OtherRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "runtime-{} (", self.id)?;
        for (index, name) in self.threads.iter().take(NAMES).enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{name:?}")?;
        }
        match self.threads.len().checked_sub(NAMES) {
            Some(more @ 1..) => write!(f, " and {more} more threads)"),
            _ => f.write_str(")"),
        }
    }
}

/// The runtimes that nobody watches, over several rounds.
#[derive(Debug, Default)]
pub(super) struct Others {
    asked_at: Nanos,
    /// By runtime: the rounds in which it has polled.
    seen: BTreeMap<u64, u32>,
    /// They have been logged once.
    pub(super) told: bool,
}

impl Others {
    /// Takes in the claims of all threads, and asks for new ones. Returns the runtimes to be listed
    /// now.
    pub(super) fn round(&mut self, claims: &Claims, watched: &[u64]) -> Vec<OtherRuntime> {
        let mut threads: BTreeMap<u64, Vec<&'static Slot>> = BTreeMap::new();
        let mut polled = BTreeMap::new();
        for (claim, (slot, at)) in claims {
            if !watched.contains(&claim.runtime) {
                threads.entry(claim.runtime).or_default().push(slot);
                *polled.entry(claim.runtime).or_default() |= *at > self.asked_at;
            }
        }
        self.count(&polled);
        self.asked_at = clock::now();
        threads
            .values()
            .flatten()
            .for_each(|slot| slot.line.ask_for_claim());
        threads.retain(|id, _| self.is_listed(*id));
        let listed = threads.into_iter().map(|(id, slots)| {
            let mut threads: Vec<String> = slots.into_iter().map(Slot::thread_name).collect();
            threads.sort();
            OtherRuntime { id, threads }
        });
        listed.collect()
    }

    /// Counts a round. `polled` has each runtime with a claim, and whether it has polled since the
    /// last one. In the first round nobody had been asked.
    fn count(&mut self, polled: &BTreeMap<u64, bool>) {
        self.seen.retain(|id, _| polled.contains_key(id));
        let is_first = self.asked_at == Nanos::default();
        for (id, has_polled) in polled {
            if *has_polled && !is_first {
                *self.seen.entry(*id).or_default() += 1;
            }
        }
    }

    fn is_listed(&self, id: u64) -> bool {
        self.seen.get(&id).is_some_and(|rounds| *rounds >= ROUNDS)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_is_listed_that_polls_in_two_rounds_and_keeps_its_claim() {
        let mut others = Others::default();
        let mut listed = |polled: &[(u64, bool)]| {
            others.count(&polled.iter().copied().collect());
            others.asked_at = Nanos(1);
            let ids = [1, 2, 3].into_iter();
            ids.filter(|id| others.is_listed(*id)).collect::<Vec<_>>()
        };
        // Claims from the time before the first round may be of runtimes that are gone.
        assert_eq!(listed(&[(1, true), (2, true), (3, true)]), [0; 0]);
        assert_eq!(listed(&[(1, true), (2, false), (3, true)]), [0; 0]);
        assert_eq!(listed(&[(1, true), (2, false)]), [1]);
        assert_eq!(listed(&[(1, false), (2, true), (3, true)]), [1], "at rest");
        assert_eq!(listed(&[(2, true)]), [2], "its threads are gone");
    }

    #[test]
    fn a_runtime_is_written_with_its_first_threads() {
        let text = |names: &[&str]| {
            let threads = names.iter().map(|name| (*name).to_owned()).collect();
            OtherRuntime { id: 7, threads }.to_string()
        };
        assert_eq!(text(&["a"]), "runtime-7 (\"a\")");
        assert_eq!(text(&["a", "b", "c"]), "runtime-7 (\"a\", \"b\", \"c\")");
        let many = text(&["a", "b", "c", "d", "e"]);
        assert_eq!(many, "runtime-7 (\"a\", \"b\", \"c\" and 2 more threads)");
    }
}
