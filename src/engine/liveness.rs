//! Whether the program should be restarted: a verdict on the stalls going on.
//!
//! *Runs on:* the server's thread.
//! *Here:* pure; ages are handed in. Only certain stalls count.

use std::time::Duration;

/// When `/health/live` says that the program should be restarted.
///
/// By default, once one worker has been stalled for 60 s, or all workers of a runtime for 15 s. A stall that ends
/// in time is none of a liveness probe's business; metrics and reports have it.
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
}

impl Default for Liveness {
    fn default() -> Liveness {
        Liveness {
            one_worker: Some(Duration::from_secs(60)),
            all_workers: Some(Duration::from_secs(15)),
        }
    }
}

impl Liveness {
    /// After how long a stall of one worker is a reason; `None` for never.
    pub fn one_worker(self, after: Option<Duration>) -> Liveness {
        Liveness {
            one_worker: after,
            ..self
        }
    }

    /// After how long a stall of all workers of one runtime is a reason; `None` for never.
    pub fn all_workers(self, after: Option<Duration>) -> Liveness {
        Liveness {
            all_workers: after,
            ..self
        }
    }

    /// Why the program should be restarted, if it should, by the ages of the stalls going on in one runtime, one
    /// for each worker that is held.
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
    fn either_can_be_switched_off() {
        let never = Liveness::default().one_worker(None).all_workers(None);
        assert_eq!(verdict(never, &[(0, 999), (1, 999)]), None);
        let only_all = Liveness::default().one_worker(None);
        assert_eq!(verdict(only_all, &[(1, 999)]), None);
        assert!(verdict(only_all, &[(0, 999), (1, 999)]).is_some());
    }
}
