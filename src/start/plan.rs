//! The check of the settings, which makes a plan or an error; and the start of a plan.
//!
//! *Runs on:* the user's threads.
//!
//! [`Builder::plan`] is pure: it reads its arguments only. It finds every error that can be found
//! without touching the process.

use super::{Builder, Guard, env, threads};
use crate::capture;
use crate::clock;
use crate::detect::Rules;
#[cfg(feature = "serve")]
use crate::engine::recording::RecordStalls;
use crate::engine::{
    Coverage, ENDLESS_AFTER, LONGEST_TICK, SHORTEST_TICK, Settings, Stacks, View, WatchState,
    read_filter_of_environment,
};
use crate::error::StartError;
use crate::probe::allow_blocking;
use crate::report::{NoStack, write_to_stderr};
use crate::reporter;
#[cfg(feature = "serve")]
use crate::serve;
#[cfg(feature = "metrics")]
use crate::slot::polls;
use crate::slot::timing;
use crate::turns::Track;
#[cfg(feature = "serve")]
use std::net::SocketAddr;
use std::sync::Arc;
#[cfg(feature = "serve")]
use std::sync::mpsc::sync_channel;
use std::time::Duration;
use tokio::runtime::{Handle, RuntimeFlavor};

/// The most reports that wait for the thread that records stalls.
#[cfg(feature = "serve")]
const RECORDINGS: usize = 64;

/// A watch that can be started.
#[derive(Debug)]
pub(super) struct Plan {
    runtimes: Vec<(Option<String>, Handle)>,
    #[cfg(feature = "serve")]
    serve: Option<SocketAddr>,
    #[cfg(feature = "serve")]
    serve_token: Option<serve::ServeToken>,
    settings: Settings,
    off: bool,
    doctor: bool,
}

impl Builder {
    /// Checks the settings. `here` is the runtime that the caller is in.
    pub(super) fn plan(self, here: Option<Handle>) -> Result<Plan, StartError> {
        let builder = self.with_environment()?;
        check(&builder.settings).map_err(|error| env::blame(&builder.settings, error))?;
        builder.checked(here)
    }

    fn checked(self, here: Option<Handle>) -> Result<Plan, StartError> {
        #[cfg(feature = "serve")]
        let serve_token = self.serve_token.transpose();
        #[cfg(feature = "serve")]
        let serve_token = serve_token.map_err(|why| StartError::ServeTokenUnusable { why })?;
        #[allow(unused_mut)] // Without recordings nothing is added.
        let mut settings = self.settings;
        #[cfg(feature = "serve")]
        {
            settings.records = self.serve.is_some() || settings.record_stalls.is_some();
        }
        let mut runtimes = self.runtimes;
        if runtimes.is_empty() {
            let here = here.ok_or(StartError::NoRuntime)?;
            runtimes.push((here.name().map(str::to_owned), here));
        }
        Ok(Plan {
            runtimes,
            #[cfg(feature = "serve")]
            serve: self.serve,
            #[cfg(feature = "serve")]
            serve_token,
            settings,
            off: self.off,
            doctor: self.doctor,
        })
    }
}

fn check(settings: &Settings) -> Result<(), StartError> {
    let threshold = settings.threshold;
    if threshold < Settings::MIN_THRESHOLD {
        return Err(StartError::ThresholdTooSmall { threshold });
    }
    if let Some(tick) = settings
        .tick
        .filter(|tick| tick.is_zero() || *tick > threshold)
    {
        return Err(StartError::TickOutOfRange { tick, threshold });
    }
    match settings.stacks {
        Stacks::Signal(signal) => check_signal(signal, capture::IS_SUPPORTED),
        Stacks::Auto | Stacks::Off => Ok(()),
    }
}

fn check_signal(signal: i32, stacks_are_supported: bool) -> Result<(), StartError> {
    if !stacks_are_supported {
        Err(StartError::StacksUnsupported)
    } else if !capture::is_usable(signal) {
        Err(StartError::SignalUnusable { signal })
    } else {
        Ok(())
    }
}

impl Plan {
    /// Starts all of the plan, or nothing.
    pub(super) fn launch(self) -> Result<Guard, StartError> {
        if self.off {
            return Ok(self.launch_nothing());
        }
        let signal = install(self.settings.stacks);
        let signal = signal.map_err(|error| env::blame(&self.settings, error))?;
        #[cfg(feature = "serve")]
        let bound = bind(self.serve)?;
        #[cfg(feature = "serve")]
        try_directory(&self.settings)?;
        read_filter_of_environment();
        timing::set_mode(self.settings.poll_timing);
        #[cfg(feature = "metrics")]
        polls::set_name_limit(self.settings.poll_labels);
        let watch = Arc::new(WatchState::new(self.settings, signal));
        let rules = |runtime: &Handle| rules(&watch.settings, runtime);
        let shared = threads::join(self.runtimes, &watch, rules)?;
        let view = View { watch, shared };
        // From here on the guard ends the watch, also if the user's subscriber panics below.
        let guard = Guard::new(view.clone());
        #[cfg(feature = "serve")]
        let guard = start_recordings(guard, &view)?;
        log_start(&view);
        #[cfg(feature = "serve")]
        let guard = match bound {
            Some(bound) => {
                warn_of_strangers(&view, &bound, self.serve_token.is_some());
                let server = bound.serve(view, self.serve_token);
                guard.with_server(server.map_err(StartError::Thread)?)
            }
            None => guard,
        };
        if self.doctor {
            print(&guard);
        }
        Ok(guard)
    }
}

impl Plan {
    /// A guard that watches nothing. The only thread is that of the server: without it, a probe has
    /// the program restarted again and again.
    fn launch_nothing(self) -> Guard {
        read_filter_of_environment();
        let coverage = self.runtimes.into_iter().map(|(name, runtime)| {
            let name = name.unwrap_or_else(|| threads::UNNAMED.to_owned());
            Coverage::switched_off(&name, runtime.metrics().num_workers())
        });
        let coverage: Vec<Coverage> = coverage.collect();
        if self.settings.log {
            coverage.iter().for_each(reporter::event::switched_off);
        }
        let watch = Arc::new(WatchState::switched_off(self.settings, coverage));
        let shared = Arc::default();
        let guard = Guard::new(View { watch, shared });
        #[cfg(feature = "serve")]
        let guard = serve_all_the_same(guard, self.serve, self.serve_token);
        if self.doctor {
            print(&guard);
        }
        guard
    }
}

/// The longest wait for the threads of workers, before coverage is printed.
const PATIENCE: Duration = Duration::from_millis(500);

/// Prints what can be seen, for `TOKIO_STALL=doctor`. It waits for the threads of the workers: they
/// may have no CPU yet. A program that starts in a poll does not block for that time.
fn print(guard: &Guard) {
    let is_known = |runtime: &Coverage| runtime.off || runtime.known_threads == runtime.workers;
    let patience = clock::now().plus(PATIENCE);
    allow_blocking("TOKIO_STALL=doctor", || {
        while clock::now() < patience && !guard.coverage().iter().all(is_known) {
            std::thread::sleep(PATIENCE / 50);
        }
        write_to_stderr(&guard.explain_coverage().to_string());
    });
}

#[cfg(feature = "serve")]
fn bind(address: Option<SocketAddr>) -> Result<Option<serve::Bound>, StartError> {
    let bind = |address| {
        let bound = serve::bind(address);
        bound.map_err(|error| StartError::Serve { address, error })
    };
    address.map(bind).transpose()
}

/// Adds the server of a watch that is switched off. A program that asks for nothing to happen does
/// not fail for it.
#[cfg(feature = "serve")]
fn serve_all_the_same(
    guard: Guard,
    address: Option<SocketAddr>,
    token: Option<serve::ServeToken>,
) -> Guard {
    let view = guard.view.clone();
    let logs = view.watch.settings.log;
    let server = bind(address).and_then(|bound| {
        let served = bound.map(|bound| bound.serve(view, token));
        served.transpose().map_err(StartError::Thread)
    });
    match server {
        Ok(None) => guard,
        Ok(Some(server)) => guard.with_server(server),
        Err(error) => {
            if logs {
                reporter::event::warn_of_use(&format!("the watch is off, and not served: {error}"));
            }
            guard
        }
    }
}

/// Makes the directory for recordings.
#[cfg(feature = "serve")]
fn try_directory(settings: &Settings) -> Result<(), StartError> {
    let Some(RecordStalls { directory, .. }) = &settings.record_stalls else {
        return Ok(());
    };
    let directory = directory.clone();
    let made = serve::try_directory(&directory);
    made.map_err(|error| StartError::Recordings { directory, error })
}

/// Starts the thread that writes recordings, if there are to be any.
#[cfg(feature = "serve")]
fn start_recordings(guard: Guard, view: &View) -> Result<Guard, StartError> {
    let Some(stalls) = view.watch.settings.record_stalls.clone() else {
        return Ok(guard);
    };
    let (news, received) = sync_channel(RECORDINGS);
    view.watch.recordings.go_to(news.clone());
    let recordings = serve::Recordings::start(view.clone(), stalls, news, received);
    Ok(guard.with_recordings(recordings.map_err(StartError::Thread)?))
}

/// Warns if others than programs of this machine may read the answers.
#[cfg(feature = "serve")]
fn warn_of_strangers(view: &View, bound: &serve::Bound, has_token: bool) {
    let address = bound.address();
    if view.watch.settings.log && !address.ip().is_loopback() && !has_token {
        reporter::event::served_to_all(address);
    }
}

/// Logs one line for each runtime.
fn log_start(view: &View) {
    if view.watch.settings.log {
        for runtime in view.runtimes() {
            reporter::event::watching(&runtime, &Coverage::of(&runtime));
        }
        // The line has named them.
        view.shared.tells_of_others();
    }
}

/// The rules for one runtime.
pub(super) fn rules(settings: &Settings, runtime: &Handle) -> Rules {
    let threshold = settings.threshold;
    Rules {
        threshold,
        tick: settings.tick.unwrap_or_else(|| {
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

/// Installs the handler of the signal that asks for stacks. Only a signal chosen by the user is an
/// error if it cannot be used; without the default one there are no stacks.
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

/// The tick for a threshold: a quarter of it with turns, half of it without, within bounds.
///
/// With four ticks in a threshold, a poll of 1.25 thresholds is seen for one threshold, whatever
/// the moment it begins at. Without turns, only polls that sleep or have a mark are seen that soon.
fn default_tick(threshold: Duration, counts_turns: bool) -> Duration {
    let in_a_threshold = if counts_turns { 4 } else { 2 };
    (threshold / in_a_threshold).clamp(SHORTEST_TICK.min(threshold), LONGEST_TICK)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use tokio::runtime::{Builder as RuntimeBuilder, Runtime};

    const MS: Duration = Duration::from_millis(1);

    /// A runtime that is only there for its handle.
    fn current_thread() -> Runtime {
        RuntimeBuilder::new_current_thread().build().unwrap()
    }

    fn multi_thread() -> Runtime {
        let mut builder = RuntimeBuilder::new_multi_thread();
        builder.worker_threads(1).build().unwrap()
    }

    #[test]
    fn wrong_settings_are_refused_with_their_fix() {
        let builder = Builder::new;
        let too_small = "set `Builder::threshold` to 0.1 ms or more";
        let out_of_range = "leave out `Builder::tick`";
        // No process can handle `SIGKILL`.
        let (without_stacks, unusable) = if capture::IS_SUPPORTED {
            ("stacks cannot be taken with signal 9", "to use SIGURG")
        } else {
            ("no stacks can be taken", "leave out `Builder::stacks`")
        };
        for (builder, problem, fix) in [
            (
                builder().threshold(Duration::from_micros(99)),
                "the threshold is 99µs, less than 0.1 ms",
                too_small,
            ),
            (
                builder().threshold(Duration::ZERO),
                "the threshold is 0ns",
                too_small,
            ),
            (
                builder().tick(Duration::ZERO),
                "the tick is 0ns, which does not fit into the threshold of 10ms",
                out_of_range,
            ),
            (
                builder().threshold(2 * MS).tick(3 * MS),
                "the tick is 3ms, which does not fit into the threshold of 2ms",
                out_of_range,
            ),
            (
                builder().stacks(Stacks::Signal(9)),
                without_stacks,
                unusable,
            ),
            (
                builder(),
                "no tokio runtime here",
                "call `tokio_stall::watch()` inside `#[tokio::main]`",
            ),
        ] {
            let text = builder.plan(None).unwrap_err().to_string();
            assert!(text.starts_with(problem), "{text}");
            assert!(text[problem.len()..].contains(fix), "{text}");
        }
    }

    #[test]
    fn a_signal_is_no_matter_where_no_stacks_are_taken() {
        let error =
            |signal, supported| check_signal(signal, supported).map_err(|error| error.to_string());
        for signal in [9, capture::DEFAULT_SIGNAL] {
            let text = error(signal, false).unwrap_err();
            assert!(
                text.starts_with("no stacks can be taken on this system"),
                "{text}"
            );
            assert!(text.contains("leave out `Builder::stacks`"), "{text}");
        }
        // Positive control: the signal itself counts where stacks are taken.
        if capture::IS_SUPPORTED {
            assert_eq!(error(capture::DEFAULT_SIGNAL, true), Ok(()));
        }
        assert!(error(9, true).unwrap_err().contains("signal 9"));
    }

    #[test]
    fn settings_at_their_bounds_are_accepted() {
        let runtime = current_thread();
        for builder in [
            Builder::new().threshold(Builder::MIN_THRESHOLD),
            Builder::new().tick(Builder::DEFAULT_THRESHOLD),
            Builder::new().tick(Duration::from_nanos(1)),
            Builder::new().stacks(Stacks::Off),
        ] {
            builder.plan(Some(runtime.handle().clone())).unwrap();
        }
    }

    #[test]
    fn plan_is_for_the_named_runtimes_or_the_one_here() {
        let (here, other) = (current_thread(), current_thread());
        let names_and_ids = |plan: Plan| -> Vec<_> {
            let runtimes = plan.runtimes.into_iter();
            runtimes.map(|(name, handle)| (name, handle.id())).collect()
        };
        let id = |runtime: &Runtime| runtime.handle().id();
        let plan = Builder::new().plan(Some(here.handle().clone())).unwrap();
        assert_eq!(names_and_ids(plan), [(None, id(&here))]);
        let named = || {
            Builder::new()
                .runtime("api", other.handle().clone())
                .runtime("db", here.handle().clone())
        };
        for in_runtime in [None, Some(here.handle().clone())] {
            let plan = named().plan(in_runtime).unwrap();
            let expected = [
                (Some("api".to_owned()), id(&other)),
                (Some("db".to_owned()), id(&here)),
            ];
            assert_eq!(names_and_ids(plan), expected);
        }
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let runtime = current_thread();
        let plan = Builder::new().plan(Some(runtime.handle().clone())).unwrap();
        let settings = &plan.settings;
        assert_eq!(settings.threshold, 10 * MS);
        assert_eq!(settings.warn_after, 100 * MS);
        assert_eq!(settings.error_after, 1_000 * MS);
        assert_eq!(settings.grace, 2_000 * MS);
        assert_eq!(settings.pool_threshold, None);
        assert_eq!((settings.recent, settings.site_labels), (64, 64));
        assert_eq!(settings.stacks, Stacks::Auto);
        assert!(settings.log && settings.turns && !settings.driven_here);
        assert!(settings.on_stall.is_none() && settings.on_pool_wait.is_none());
        assert_eq!(plan.settings.tick, None);
        let rules = rules(settings, runtime.handle());
        assert_eq!(rules.threshold, 10 * MS);
        assert_eq!(rules.milestones, [100 * MS, 1_000 * MS, 10_000 * MS]);
    }

    #[test]
    fn rules_have_the_chosen_tick_or_a_part_of_the_threshold() {
        let runtime = current_thread();
        let tick = |builder: Builder| {
            let plan = builder.plan(Some(runtime.handle().clone())).unwrap();
            rules(&plan.settings, runtime.handle()).tick
        };
        let without_turns = || Builder::new().turns(false);
        assert_eq!(tick(without_turns()), 5 * MS);
        assert_eq!(tick(without_turns().threshold(8 * MS)), 4 * MS);
        assert_eq!(tick(without_turns().tick(7 * MS)), 7 * MS);
        assert_eq!(tick(Builder::new().tick(7 * MS)), 7 * MS);
    }

    #[test]
    fn only_a_multi_thread_runtime_is_always_driven() {
        let settings = Settings::default();
        let always_driven = |runtime: &Runtime| {
            let rules = rules(&settings, runtime.handle());
            rules.always_driven
        };
        assert!(always_driven(&multi_thread()));
        assert!(!always_driven(&current_thread()));
    }

    #[test]
    fn default_tick_is_a_part_of_the_threshold_within_bounds() {
        for (threshold_us, counts_turns, tick_us) in [
            (10_000, true, 2_500),
            (10_000, false, 5_000),
            // The longest tick.
            (1_000_000, true, 25_000),
            (1_000_000, false, 25_000),
            // The shortest tick.
            (600, true, 500),
            (600, false, 500),
            // Never longer than the threshold.
            (100, true, 100),
            (100, false, 100),
        ] {
            let threshold = Duration::from_micros(threshold_us);
            let tick = default_tick(threshold, counts_turns);
            assert_eq!(tick, Duration::from_micros(tick_us), "{threshold:?}");
        }
    }
}
