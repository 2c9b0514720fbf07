//! The decision whether the program should be restarted, by the stalls going on.
//!
//! *Runs on:* the thread `stall-serve`.
//! *Must not:* read a clock or a lock: ages are arguments.

use std::time::Duration;

/// The ages of stalls from which on `/health/live` asks for a restart of the program.
///
/// By default, these are 60 s for a stall of one worker, and 15 s for stalls of all workers of a
/// runtime. Shorter stalls do not concern a liveness probe; metrics and reports have them. Only
/// certain stalls count. One that is known by counting alone may be several polls: only the share
/// of one of them counts. An exhausted blocking pool is a reason only if it is asked for: closures
/// may rightly take long.
///
/// ```
/// use std::time::Duration;
/// use tokio_stall::Liveness;
///
/// let liveness = Liveness::default()
///     .one_worker(None)
///     .all_workers(Some(Duration::from_secs(30)));
/// # drop(liveness);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Liveness {
    one_worker: Option<Duration>,
    all_workers: Option<Duration>,
    blocking_pool: Option<Duration>,
}

impl Default for Liveness {
    fn default() -> Liveness {
        Liveness {
            one_worker: Some(Duration::from_secs(60)),
            all_workers: Some(Duration::from_secs(15)),
            blocking_pool: None,
        }
    }
}

impl Liveness {
    /// The age from which on a stall of one worker is a reason; `None` for never.
    pub fn one_worker(self, after: Option<Duration>) -> Liveness {
        Liveness {
            one_worker: after,
            ..self
        }
    }

    /// The age from which on stalls of all workers of one runtime are a reason; `None` for never.
    pub fn all_workers(self, after: Option<Duration>) -> Liveness {
        Liveness {
            all_workers: after,
            ..self
        }
    }

    /// The age from which on an exhausted blocking pool is a reason; `None`, the default, for
    /// never.
    ///
    /// Only a pool that is known to be exhausted is a reason. A closure whose thread waits for a
    /// CPU is none.
    pub fn blocking_pool(self, after: Option<Duration>) -> Liveness {
        Liveness {
            blocking_pool: after,
            ..self
        }
    }

    /// Why the program should be restarted since its blocking pool has been exhausted for this
    /// long, if it should.
    pub(crate) fn verdict_on_pool(self, runtime: &str, age: Duration) -> Option<String> {
        let too_long = self.blocking_pool.is_some_and(|limit| age >= limit);
        let seconds = age.as_secs();
        too_long.then(|| format!("{runtime:?}: its blocking pool has been full for {seconds} s"))
    }

    /// Why the program should be restarted, if it should.
    ///
    /// `held` has the ages of the certain stalls going on in one runtime, one for each worker that
    /// is held.
    pub(crate) fn verdict(
        self,
        runtime: &str,
        workers: usize,
        held: &[(usize, Duration)],
    ) -> Option<String> {
        let youngest = held.iter().map(|(_, age)| *age).min()?;
        let (worker, oldest) = held.iter().max_by_key(|(_, age)| *age)?;
        if held.len() >= workers && self.all_workers.is_some_and(|limit| youngest >= limit) {
            let which = if workers == 1 {
                "its worker has"
            } else {
                "all its workers have"
            };
            let seconds = youngest.as_secs();
            return Some(format!("{runtime:?}: {which} been stalled for {seconds} s"));
        }
        let too_long = self.one_worker.is_some_and(|limit| *oldest >= limit);
        let seconds = oldest.as_secs();
        too_long.then(|| format!("{runtime:?}: worker {worker} has been stalled for {seconds} s"))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn verdict(liveness: Liveness, held: &[(usize, u64)]) -> Option<String> {
        let held: Vec<_> = held
            .iter()
            .map(|(worker, seconds)| (*worker, Duration::from_secs(*seconds)))
            .collect();
        liveness.verdict("api", 2, &held)
    }

    #[test]
    fn one_worker_has_longer_than_all_of_them() {
        let default = Liveness::default();
        assert_eq!(verdict(default, &[]), None);
        assert_eq!(verdict(default, &[(1, 59)]), None);
        let one = "\"api\": worker 1 has been stalled for 60 s";
        assert_eq!(verdict(default, &[(1, 60)]).as_deref(), Some(one));
        assert_eq!(
            verdict(default, &[(0, 14), (1, 59)]),
            None,
            "not all for so long"
        );
        let all = "\"api\": all its workers have been stalled for 15 s";
        assert_eq!(verdict(default, &[(0, 15), (1, 59)]).as_deref(), Some(all));
    }

    #[test]
    fn a_full_pool_is_a_reason_only_if_it_is_asked_for() {
        let verdict = |liveness: Liveness, seconds| {
            liveness.verdict_on_pool("api", Duration::from_secs(seconds))
        };
        assert_eq!(verdict(Liveness::default(), 9999), None);
        let asked = Liveness::default().blocking_pool(Some(Duration::from_secs(30)));
        assert_eq!(verdict(asked, 29), None);
        let why = "\"api\": its blocking pool has been full for 30 s";
        assert_eq!(verdict(asked, 30).as_deref(), Some(why));
    }

    #[test]
    fn either_can_be_switched_off() {
        let never = Liveness::default().one_worker(None).all_workers(None);
        assert_eq!(verdict(never, &[(0, 999), (1, 999)]), None);
        let only_all = Liveness::default().one_worker(None);
        assert_eq!(verdict(only_all, &[(1, 999)]), None);
        assert!(verdict(only_all, &[(0, 999), (1, 999)]).is_some());
    }
}
