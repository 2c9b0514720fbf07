//! From what was chosen to a plan, or to what is wrong with it; and from a plan to a running watch.
//!
//! *Runs on:* the user's threads.
//!
//! [`Builder::plan`] is pure: it only looks at its arguments. Whatever can be found wrong without touching the
//! process is found there.

use super::{Builder, Guard, threads};
use crate::capture;
use crate::clock;
use crate::detect::Rules;
use crate::engine::{
    Coverage, ENDLESS_AFTER, LONGEST_TICK, SHORTEST_TICK, Settings, Stacks, View, WatchState,
};
use crate::error::StartError;
use crate::report::{NoStack, Recent};
use crate::reporter;
#[cfg(feature = "serve")]
use crate::serve;
#[cfg(feature = "metrics")]
use crate::slot::polls;
use crate::slot::timing;
use crate::turns::Track;
use parking_lot::Mutex;
#[cfg(feature = "serve")]
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::{Handle, RuntimeFlavor};

/// What is to be started.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) runtimes: Vec<(Option<String>, Handle)>,
    tick: Option<Duration>,
    #[cfg(feature = "serve")]
    serve: Option<SocketAddr>,
    settings: Settings,
}

impl Builder {
    /// Checks what was chosen. `here` is the runtime that this is called in.
    pub(super) fn plan(self, here: Option<Handle>) -> Result<Plan, StartError> {
        let Builder {
            mut runtimes,
            tick,
            #[cfg(feature = "serve")]
            serve,
            settings,
        } = self;
        let threshold = settings.threshold;
        if threshold < Settings::MIN_THRESHOLD {
            return Err(StartError::ThresholdTooSmall { threshold });
        }
        if let Some(tick) = tick.filter(|tick| tick.is_zero() || *tick > threshold) {
            return Err(StartError::TickOutOfRange { tick, threshold });
        }
        match settings.stacks {
            Stacks::Signal(signal) if !capture::is_usable(signal) => {
                return Err(StartError::SignalUnusable { signal });
            }
            _ => {}
        }
        if runtimes.is_empty() {
            let here = here.ok_or(StartError::NoRuntime)?;
            runtimes.push((here.name().map(str::to_owned), here));
        }
        Ok(Plan {
            runtimes,
            tick,
            #[cfg(feature = "serve")]
            serve,
            settings,
        })
    }
}

impl Plan {
    /// Starts what is planned: all of it, or nothing.
    pub(super) fn launch(self) -> Result<Guard, StartError> {
        let Plan {
            runtimes,
            tick,
            #[cfg(feature = "serve")]
            serve,
            settings,
        } = self;
        let signal = install(settings.stacks)?;
        #[cfg(feature = "serve")]
        let bound = match serve {
            Some(address) => {
                let bound = serve::bind(address);
                Some(bound.map_err(|error| StartError::Serve { address, error })?)
            }
            None => None,
        };
        timing::set_mode(settings.poll_timing);
        #[cfg(feature = "metrics")]
        polls::set_name_limit(settings.poll_labels);
        let watch = Arc::new(WatchState {
            started_at: clock::now(),
            signal,
            profile: Mutex::default(),
            recent: Mutex::new(Recent::new(settings.recent)),
            settings,
        });
        let shared = threads::join(runtimes, &watch, |runtime| {
            rules(&watch.settings, tick, runtime)
        })?;
        let view = View { watch, shared };
        if view.watch.settings.log {
            for runtime in view.runtimes() {
                reporter::log::watching(&runtime, &Coverage::of(&runtime));
            }
        }
        let guard = Guard::new(view.clone());
        #[cfg(feature = "serve")]
        if let Some(bound) = bound {
            let server = bound.serve(view).map_err(StartError::Thread)?;
            return Ok(guard.with_server(server));
        }
        Ok(guard)
    }
}

/// By what rules one runtime is watched.
fn rules(settings: &Settings, tick: Option<Duration>, runtime: &Handle) -> Rules {
    let threshold = settings.threshold;
    Rules {
        threshold,
        tick: tick.unwrap_or_else(|| {
            let counts_turns = Track::new(runtime.runtime_flavor(), settings.turns)
                .missing()
                .is_none();
            default_tick(threshold, counts_turns)
        }),
        milestones: [settings.warn_after, settings.error_after, ENDLESS_AFTER],
        always_driven: runtime.runtime_flavor() == RuntimeFlavor::MultiThread
            || settings.driven_here && is_driven_here(runtime),
    }
}

/// Installs the handler of the signal that asks for stacks. Asking for a signal that cannot be had is an error;
/// not getting the default one is not.
fn install(stacks: Stacks) -> Result<Result<i32, NoStack>, StartError> {
    let (signal, was_asked_for) = match stacks {
        Stacks::Off => return Ok(Err(NoStack::Off)),
        Stacks::Auto => (capture::DEFAULT_SIGNAL, false),
        Stacks::Signal(signal) => (signal, true),
    };
    match capture::install(signal) {
        Ok(()) => Ok(Ok(signal)),
        Err(NoStack::SignalTaken) if was_asked_for => Err(StartError::SignalTaken { signal }),
        Err(_) if was_asked_for => Err(StartError::SignalUnusable { signal }),
        Err(why) => Ok(Err(why)),
    }
}

fn is_driven_here(runtime: &Handle) -> bool {
    tokio::runtime::worker_index().is_some()
        && Handle::try_current().is_ok_and(|here| here.id() == runtime.id())
}

/// Where turns are counted, four ticks make a threshold, so that a poll of 1.25 thresholds is seen for one
/// whatever the moment it begins at. Without them only what sleeps, or has a mark, is seen that soon.
fn default_tick(threshold: Duration, counts_turns: bool) -> Duration {
    let in_a_threshold = if counts_turns { 4 } else { 2 };
    (threshold / in_a_threshold).clamp(SHORTEST_TICK.min(threshold), LONGEST_TICK)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_tick_is_a_part_of_the_threshold_within_bounds() {
        let tick = |micros, turns| default_tick(Duration::from_micros(micros), turns);
        assert_eq!(tick(10_000, true), Duration::from_micros(2_500));
        assert_eq!(tick(10_000, false), Duration::from_millis(5));
        assert_eq!(tick(1_000_000, true), Duration::from_millis(25));
        assert_eq!(tick(600, false), Duration::from_micros(500));
        assert_eq!(
            tick(100, true),
            Duration::from_micros(100),
            "never longer than the threshold"
        );
    }
}
