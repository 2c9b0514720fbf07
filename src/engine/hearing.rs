//! Asks the subscriber of the process whether it takes the detector's events.
//!
//! *Runs on:* `stall-sinks` and `stall-look` ask, and so does a thread of the program for its own
//! event. Every thread may read the last answer.
//! *Must not:* ask on another thread of the detector: a filter is the user's code. A thread of the
//! program may have a subscriber of its own, which gets no event of the detector, so its answer is
//! not kept.
//!
//! A filter that hides the target is meant to, if it names it, or if it lets others pass. A filter
//! that hides all but the program's own modules says nothing about stalls.

use std::env;
use std::ffi::OsStr;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use tracing::subscriber::NoSubscriber;

/// The target of all events: filter with `tokio_stall=off`.
pub(crate) const TARGET: &str = "tokio_stall";

/// A target that no filter names. It is no continuation of ours, which a filter would include.
const ANOTHER: &str = "another_library";

/// Who gets the events of the detector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Hearing {
    /// It has not been asked yet.
    #[default]
    Unknown,
    /// The subscriber takes warnings.
    Heard,
    /// The process has no subscriber.
    NoSubscriber,
    /// The filter of the subscriber hides the target, as it hides most others.
    Hidden,
    /// The filter lets errors pass, and no warnings, of all libraries.
    OnlyErrors,
    /// The filter is meant to hide the target.
    Off,
}

const ALL: [Hearing; 6] = [
    Hearing::Unknown,
    Hearing::Heard,
    Hearing::NoSubscriber,
    Hearing::Hidden,
    Hearing::OnlyErrors,
    Hearing::Off,
];

/// The last answer, as the index in [`ALL`]. Relaxed: it publishes nothing else.
static LAST: AtomicU8 = AtomicU8::new(0);
/// Whether `RUST_LOG` names the target.
static IS_NAMED: AtomicBool = AtomicBool::new(false);

/// The levels that a target passes with.
#[derive(Clone, Copy, Default)]
struct Passes {
    errors: bool,
    warnings: bool,
}

impl Hearing {
    /// The last answer.
    pub(crate) fn last() -> Hearing {
        let index = usize::from(LAST.load(Ordering::Relaxed));
        ALL.get(index).copied().unwrap_or_default()
    }

    /// Asks the subscriber of the calling thread, which must be the process's. Keeps the answer.
    pub(crate) fn ask() -> Hearing {
        let answer = Hearing::here();
        let index = ALL.iter().position(|known| *known == answer);
        let index = index.and_then(|index| u8::try_from(index).ok());
        LAST.store(index.unwrap_or_default(), Ordering::Relaxed);
        answer
    }

    /// Asks the subscriber of the calling thread.
    pub(crate) fn here() -> Hearing {
        let has_subscriber = tracing::dispatcher::get_default(|here| !here.is::<NoSubscriber>());
        let ours = Passes {
            errors: tracing::event_enabled!(target: TARGET, tracing::Level::ERROR),
            warnings: tracing::event_enabled!(target: TARGET, tracing::Level::WARN),
        };
        let others = Passes {
            errors: tracing::event_enabled!(target: ANOTHER, tracing::Level::ERROR),
            warnings: tracing::event_enabled!(target: ANOTHER, tracing::Level::WARN),
        };
        let is_named = IS_NAMED.load(Ordering::Relaxed);
        judge(has_subscriber, ours, others, is_named)
    }

    /// The reason why warnings are not heard, and the fix.
    pub(crate) fn why_not(self) -> Option<&'static str> {
        match self {
            Hearing::Heard => None,
            Hearing::Unknown => Some("it has not been looked for yet"),
            Hearing::NoSubscriber => Some(
                "the process has no subscriber of `tracing`; install one, as by \
                 `tracing_subscriber::fmt().init()`",
            ),
            Hearing::Hidden => {
                Some("the filter of the subscriber hides it; add `tokio_stall=info` to the filter")
            }
            Hearing::OnlyErrors => Some(
                "the filter of the subscriber lets errors pass and no warnings; add \
                 `tokio_stall=info` to the filter",
            ),
            Hearing::Off => Some("the filter of the subscriber turns the target `tokio_stall` off"),
        }
    }
}

fn judge(has_subscriber: bool, ours: Passes, others: Passes, is_named: bool) -> Hearing {
    match (has_subscriber, ours.warnings) {
        (false, _) => Hearing::NoSubscriber,
        (true, true) => Hearing::Heard,
        // Others pass, and we do not.
        (true, false) if is_named || others.warnings => Hearing::Off,
        (true, false) if ours.errors => Hearing::OnlyErrors,
        (true, false) if others.errors => Hearing::Off,
        (true, false) => Hearing::Hidden,
    }
}

/// Notes whether the environment has a filter that names the target. For the user's threads: the
/// program may change its environment later.
pub(crate) fn read_filter_of_environment() {
    let filter = env::var_os("RUST_LOG");
    let is_named = filter.as_deref().is_some_and(names_target);
    // Relaxed: the flag publishes nothing else.
    IS_NAMED.store(is_named, Ordering::Relaxed);
}

/// Whether a filter, as of `RUST_LOG`, has a directive for the target.
fn names_target(filter: &OsStr) -> bool {
    let filter = filter.to_string_lossy();
    let mut targets = filter.split(',').map(|directive| {
        let end = directive.find(['=', '[']);
        directive[..end.unwrap_or(directive.len())].trim()
    });
    targets.any(|target| target == TARGET)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const NONE: Passes = Passes {
        errors: false,
        warnings: false,
    };
    const ERRORS: Passes = Passes {
        errors: true,
        warnings: false,
    };
    const BOTH: Passes = Passes {
        errors: true,
        warnings: true,
    };

    #[test]
    fn a_filter_that_names_us_or_lets_others_pass_is_meant() {
        for (ours, others, is_named, wanted) in [
            (BOTH, NONE, true, Hearing::Heard),
            (BOTH, BOTH, false, Hearing::Heard),
            // `my_app=info`, and the same with `tokio_stall=off`.
            (NONE, NONE, false, Hearing::Hidden),
            (NONE, NONE, true, Hearing::Off),
            // `info,tokio_stall=off`, `error,tokio_stall=off`, `info,tokio_stall=error`.
            (NONE, BOTH, false, Hearing::Off),
            (NONE, ERRORS, false, Hearing::Off),
            (ERRORS, BOTH, false, Hearing::Off),
            // No filter at all is `error` for many programs.
            (ERRORS, ERRORS, false, Hearing::OnlyErrors),
            (ERRORS, ERRORS, true, Hearing::Off),
        ] {
            assert_eq!(judge(true, ours, others, is_named), wanted);
        }
        assert_eq!(judge(false, NONE, NONE, true), Hearing::NoSubscriber);
    }

    #[test]
    fn a_filter_names_the_target_by_its_whole_name() {
        for filter in [
            "tokio_stall=off",
            "info, tokio_stall",
            "a=info,tokio_stall[x]=warn",
        ] {
            assert!(names_target(OsStr::new(filter)), "{filter}");
        }
        for filter in [
            "",
            "info",
            "tokio=off",
            "tokio_stall_x=off",
            "my=tokio_stall",
        ] {
            assert!(!names_target(OsStr::new(filter)), "{filter}");
        }
    }

    #[test]
    fn each_reason_but_the_meant_one_has_a_fix() {
        for hearing in [Hearing::NoSubscriber, Hearing::Hidden, Hearing::OnlyErrors] {
            let why = hearing.why_not().expect("a reason");
            assert!(why.contains("install") || why.contains("add"), "{why}");
        }
        assert_eq!(Hearing::Heard.why_not(), None);
    }
}
