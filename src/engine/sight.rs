//! The facts about what works in this process, found by trying it.
//!
//! *Runs on:* `stall-explainer` every two seconds; a start has a thread make the first round.
//! Coverage reads the facts, for guards, for the log and for metrics.
//! *Must not:* signal or hold up a thread of the program.

use super::{OtherRuntime, Shared, WatchState, WatchedRuntime};
use crate::capture::{ForeignHandler, try_on_oneself};
use crate::clock::{self, Nanos};
use crate::explain::why_no_lines;
use crate::os::{self, HiddenEvidence};
use crate::report::NoStack;
use crate::slot::{Claims, collect_claims};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The age at which facts are not facts any more: the thread that finds them hangs.
const OLD: Duration = Duration::from_secs(30);

/// The facts that the last round has found.
#[derive(Clone, Debug)]
pub(crate) struct Sight {
    found_at: Nanos,
    no_stacks: Option<NoStack>,
    pub(super) hidden: Option<HiddenEvidence>,
    pub(super) others: Vec<OtherRuntime>,
    /// The reason why no line of the program can be named.
    pub(super) no_lines: Option<&'static str>,
}

/// The answer about the file of the program, which is read once.
static NO_LINES: OnceLock<Option<&'static str>> = OnceLock::new();

impl Sight {
    /// The reason why no stacks can be had now.
    pub(super) fn no_stacks(&self, now: Nanos) -> Option<NoStack> {
        let is_old = now.since(self.found_at) >= OLD;
        self.no_stacks.or(is_old.then_some(NoStack::NoExplainer))
    }
}

/// What a watch keeps from one round to the next.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    last: Option<Sight>,
    foreign: ForeignHandler,
}

impl WatchState {
    /// The facts of the last round; `None` before the first.
    pub(super) fn sight(&self) -> Option<Sight> {
        self.rounds.lock().last.clone()
    }

    fn look(&self, hidden: Option<HiddenEvidence>, others: Vec<OtherRuntime>) {
        // The handler may be the program's and take its time, so the lock is not held meanwhile.
        let mut foreign = self.rounds.lock().foreign;
        let mut no_stacks = match self.signal {
            Ok(signal) => try_on_oneself(signal, &mut foreign),
            Err(why) => Some(why),
        };
        // The program's file may be on a slow disk. Users' threads take the lock for coverage.
        let no_lines = *NO_LINES.get_or_init(why_no_lines);
        let mut rounds = self.rounds.lock();
        rounds.foreign = foreign;
        if no_stacks == Some(NoStack::Busy) {
            // Buffers become free again. Whether stacks can be had is as it was.
            no_stacks = rounds.last.as_ref().and_then(|last| last.no_stacks);
        }
        rounds.last = Some(Sight {
            found_at: clock::now(),
            no_stacks,
            hidden,
            others,
            no_lines,
        });
    }
}

impl Shared {
    /// Tries what works now, for all watches.
    ///
    /// # Cost
    ///
    /// About 50 µs of the calling thread. The first round also reads the headers of the program's
    /// file.
    pub(crate) fn look_at_sight(&self) {
        let watched = self.watched.lock().clone();
        let mut claims = Claims::new();
        collect_claims(&mut claims);
        let ids: Vec<u64> = watched.iter().map(|runtime| runtime.id).collect();
        let others = self.others.lock().round(&claims, &ids);
        let hidden = os::hidden_evidence();
        let mut looked: Vec<Arc<WatchState>> = Vec::new();
        for WatchedRuntime { watch, .. } in watched.iter().map(Arc::as_ref) {
            if !looked.iter().any(|known| Arc::ptr_eq(known, watch)) {
                watch.look(hidden, others.clone());
                looked.push(watch.clone());
            }
        }
    }

    /// A watched runtime whose log is to name the runtimes that nobody watches. `None` if there are
    /// none, or if they have been named.
    pub(crate) fn tells_of_others(&self) -> Option<Arc<WatchedRuntime>> {
        let watched = self.watched.lock().clone();
        let mut runtimes = watched.into_iter();
        let teller = runtimes.find(|runtime| {
            let sight = runtime.watch.sight();
            runtime.watch.settings.log && sight.is_some_and(|sight| !sight.others.is_empty())
        })?;
        let was_told = std::mem::replace(&mut self.others.lock().told, true);
        (!was_told).then_some(teller)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::engine::Coverage;

    #[test]
    fn old_facts_are_no_facts() {
        let found_at = Nanos(1_000_000_000);
        let sight = |no_stacks| Sight {
            found_at,
            no_stacks,
            hidden: None,
            others: Vec::new(),
            no_lines: None,
        };
        let (young, old) = (found_at.plus(OLD / 2), found_at.plus(OLD));
        assert_eq!(sight(None).no_stacks(young), None);
        assert_eq!(sight(None).no_stacks(old), Some(NoStack::NoExplainer));
        let forbidden = Some(NoStack::Forbidden);
        assert_eq!(sight(forbidden).no_stacks(old), forbidden);
    }

    #[test]
    fn nothing_is_said_to_be_seen_before_the_first_round() {
        let tokio = tokio::runtime::Builder::new_current_thread().build();
        let tokio = tokio.unwrap();
        let runtime = WatchedRuntime::for_tests(tokio.handle());
        let before = Coverage::of(&runtime);
        assert!(!before.stacks && !before.thread_evidence && !before.calls);
        let evidence = before.no_thread_evidence.expect("a reason");
        assert!(evidence.contains("not been looked for"), "{before}");
        runtime.watch.look(None, Vec::new());
        let after = Coverage::of(&runtime);
        assert!(after.thread_evidence && after.calls && !after.stacks);
        assert_eq!(after.no_stacks, Some(NoStack::Off));
    }
}
