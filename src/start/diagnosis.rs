//! The things that the detector sees and does not see in this process, with reasons and fixes.
//!
//! *Runs on:* the user's threads.
//!
//! It adds words to [`Coverage`], and the settings in force. A thing that works has a sentence,
//! too: silence would not tell it from a thing that was forgotten.

use super::{Guard, threads};
use crate::engine::{Coverage, Hearing, Settings, View, WatchedRuntime};
use crate::probe;
use std::fmt::{self, Write as _};

/// The things that the detector sees in this process, and those that it does not see: why, and what
/// would change it. Made by [`Guard::explain_coverage`].
///
/// `Display` writes the whole as a text of some thirty lines, as `TOKIO_STALL=doctor` prints it.
/// Names that the program contains are escaped in it.
///
/// # Examples
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), tokio_stall::StartError> {
/// let watch = tokio_stall::watch()?;
/// let diagnosis = watch.explain_coverage();
/// println!("{diagnosis}");
/// // This program has no subscriber.
/// let log = diagnosis.observations.iter().find(|observed| observed.about == "log");
/// assert!(log.is_some_and(|log| !log.works && log.text.contains("install one")));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Diagnosis {
    /// One for each thing: those of each runtime, then those of the process.
    pub observations: Vec<Observation>,
    /// The settings in force.
    pub settings: Vec<SettingInForce>,
}

/// One thing that the detector sees, or does not see. See [`Diagnosis`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Observation {
    /// The name of the runtime. `None` for a thing of the whole process.
    pub runtime: Option<String>,
    /// The thing, mostly by the label that the metric `tokio_stall_coverage` has for it.
    pub about: &'static str,
    /// Whether it works.
    pub works: bool,
    /// The facts; for a thing that does not work the reason and the fix.
    pub text: String,
}

/// A setting of the watch. See [`Diagnosis`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SettingInForce {
    /// The key that `TOKIO_STALL` has for it.
    pub key: &'static str,
    /// The value. Durations have a unit; the token of the server is not shown.
    pub value: String,
    /// The place that has given the value.
    pub source: SettingSource,
}

/// The place that has given a setting. [`Diagnosis`] has an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum SettingSource {
    /// The value is the default.
    Default,
    /// A call of the builder.
    Code,
    /// The variable `TOKIO_STALL`.
    Environment,
}

impl Guard {
    /// Explains what the detector sees in this process, and what it does not see: why, and the
    /// change that would help. It is the first thing to look at if nothing is reported.
    ///
    /// `TOKIO_STALL=doctor` prints it to standard error at the start, in a program that calls
    /// [`Builder::from_env`](crate::Builder::from_env). Later calls know more: whether spans have
    /// reached the layer, and a subscriber that was installed after the start.
    ///
    /// # Cost
    ///
    /// It starts a thread for a moment, which asks the subscriber whether it takes the detector's
    /// events. The call waits for that, some 0.1 ms; a second at most, if a filter is held up.
    pub fn explain_coverage(&self) -> Diagnosis {
        if !self.view.watch.is_off() && !self.view.shared.is_inherited() {
            threads::ask_for_hearing();
        }
        let mut observations = Vec::new();
        for coverage in self.coverage() {
            observations.extend(of_runtime(&coverage));
        }
        let first = self.coverage().into_iter().next();
        #[cfg(feature = "serve")]
        let is_served = self.served_at().is_some();
        #[cfg(not(feature = "serve"))]
        let is_served = false;
        let of_process = |of| of_process(of, &self.view, is_served);
        observations.extend(first.iter().flat_map(of_process));
        Diagnosis {
            observations,
            settings: self.settings_in_force(),
        }
    }

    fn settings_in_force(&self) -> Vec<SettingInForce> {
        let settings = &self.view.watch.settings;
        let mut all = in_force(settings, &self.view.runtimes());
        #[cfg(feature = "serve")]
        all.extend(of_server(settings, self.served_at()));
        all.retain(|setting| !setting.value.is_empty());
        all
    }
}

/// The labels of coverage that concern the whole process.
const OF_PROCESS: [&str; 7] = [
    "spans", "causes", "calls", "stacks", "lines", "runtimes", "log",
];

fn of_runtime(coverage: &Coverage) -> Vec<Observation> {
    let parts = coverage.parts().into_iter();
    let parts = parts.filter(|(about, _)| !OF_PROCESS.contains(about));
    let found = parts.map(|(about, why_not)| Observation {
        runtime: Some(coverage.runtime.clone()),
        about,
        ..observed(about, why_not, coverage)
    });
    found.collect()
}

fn of_process(coverage: &Coverage, view: &View, is_served: bool) -> Vec<Observation> {
    let parts = coverage.parts().into_iter();
    let parts = parts.filter(|(about, _)| OF_PROCESS.contains(about));
    let mut found: Vec<Observation> = parts
        .map(|(about, why_not)| observed(about, why_not, coverage))
        .collect();
    let settings = &view.watch.settings;
    if coverage.off {
        return found;
    }
    if let Some(lines) = found.iter_mut().find(|it| it.about == "lines" && !it.works) {
        lines.text.push_str(&settings.own_code.without_lines());
    }
    if let Some(log) = found.iter_mut().find(|it| it.about == "log") {
        log.text.push_str(instead_of_log(settings, log.works));
    }
    found.push(metrics(settings, is_served));
    found
}

/// The outlets of stalls beside the log.
fn instead_of_log(settings: &Settings, is_heard: bool) -> &'static str {
    match (is_heard, settings.on_stall.is_some(), Hearing::last()) {
        (_, true, _) => "; the callback `on_stall` gets each stall",
        (false, false, Hearing::NoSubscriber | Hearing::Hidden) if settings.log => {
            "; until then the headline of a stall goes to standard error"
        }
        _ => "",
    }
}

fn observed(about: &'static str, why_not: Option<String>, coverage: &Coverage) -> Observation {
    // Turns find what marks would.
    let is_found_by_turns = about == "polls" && coverage.turns;
    let works = why_not.is_none() || is_found_by_turns;
    let text = match why_not {
        Some(_) if is_found_by_turns => {
            "each long poll is found, marked or not; exact times and names need a mark".to_owned()
        }
        Some(why_not) => why_not,
        None => seen(about, coverage),
    };
    Observation {
        runtime: None,
        about,
        works,
        text,
    }
}

/// The sentence about a thing that is seen.
fn seen(about: &str, coverage: &Coverage) -> String {
    let text = match about {
        "workers" if coverage.workers == 1 => "the thread of its 1 worker is known",
        "workers" => return format!("the threads of all {} are known", coverage.workers),
        "polls" => "every poll of every task is marked",
        "spans" if probe::has_seen_spans() => "the layer is installed, and spans reach it",
        "spans" => {
            "the layer is installed; no span has reached it yet, as is usual at the start. If that \
             is so later, a filter hides them, or they are more verbose than INFO \
             (`StallLayer::with_max_level`), as those of `TraceLayer` are"
        }
        "causes" => "the system shows whether a thread sleeps, computes or waits for a CPU",
        "calls" => "the system shows the call that a thread sleeps in",
        "stacks" => "a thread of the detector has taken one of itself",
        "lines" => "the program has debug information",
        "turns" => "they are counted",
        "runtimes" => "no runtime with marked polls is unwatched",
        "block_on" => "the future given to `block_on` is watched",
        "log" => "a subscriber takes warnings of the target `tokio_stall`",
        _ => "it is seen",
    };
    text.to_owned()
}

#[cfg(feature = "metrics")]
fn metrics(settings: &Settings, is_served: bool) -> Observation {
    use crate::engine::Target;
    // The recorder that the facade has without any has no size.
    let size = settings.metrics.with(|recorder| size_of_val(recorder));
    let (works, text) = match (&settings.metrics, size) {
        (Target::Given(_), _) => (true, "the recorder of `Builder::recorder` gets them"),
        (Target::Installed, 0) if is_served => (
            true,
            "`/metrics` of the server has them; no recorder of the facade `metrics` is installed",
        ),
        (Target::Installed, 0) => (
            false,
            "no recorder of the facade `metrics` is installed; install one, or use \
             `Builder::serve`",
        ),
        (Target::Installed, _) => (true, "a recorder of the facade `metrics` is installed"),
    };
    Observation {
        runtime: None,
        about: "metrics",
        works,
        text: text.to_owned(),
    }
}

#[cfg(not(feature = "metrics"))]
fn metrics(_: &Settings, _: bool) -> Observation {
    Observation {
        runtime: None,
        about: "metrics",
        works: false,
        text: "the feature `metrics` is not built in".to_owned(),
    }
}

/// The features of this crate that are built in.
fn features() -> String {
    let all = [
        ("axum", cfg!(feature = "axum")),
        ("flamegraph", cfg!(feature = "flamegraph")),
        ("metrics", cfg!(feature = "metrics")),
        ("pprof", cfg!(feature = "pprof")),
        ("prometheus", cfg!(feature = "prometheus")),
        ("serde", cfg!(feature = "serde")),
        ("serve", cfg!(feature = "serve")),
        ("stacks", cfg!(feature = "stacks")),
        ("testing", cfg!(feature = "testing")),
        ("tower", cfg!(feature = "tower")),
    ];
    let built: Vec<&str> = all
        .iter()
        .filter_map(|(name, built)| built.then_some(*name))
        .collect();
    match built.is_empty() {
        true => "no features".to_owned(),
        false => format!("features {}", built.join(", ")),
    }
}

/// A setting, with its source: the environment, or the code if it is not the default.
fn setting<T: PartialEq>(
    settings: &Settings,
    key: &'static str,
    (value, default): (T, T),
    written: impl Fn(&T) -> String,
) -> SettingInForce {
    let source = match settings.from_env.contains(&key) {
        true => SettingSource::Environment,
        false if value == default => SettingSource::Default,
        false => SettingSource::Code,
    };
    SettingInForce {
        key,
        value: written(&value),
        source,
    }
}

fn in_force(
    settings: &Settings,
    runtimes: &[std::sync::Arc<WatchedRuntime>],
) -> Vec<SettingInForce> {
    let default = Settings::default();
    let time = |value: &std::time::Duration| format!("{value:?}");
    let switch = |on: &bool| if *on { "on" } else { "off" }.to_owned();
    let tick = runtimes.first().map(|runtime| time(&runtime.rules.tick));
    let tick = tick.unwrap_or_else(|| "as the threshold asks for".to_owned());
    macro_rules! each {
        ($($key:literal $field:ident $written:expr),* $(,)?) => {
            vec![$(setting(
                settings,
                $key,
                (settings.$field.clone(), default.$field.clone()),
                $written,
            )),*]
        };
    }
    let all = each![
        "threshold" threshold time,
        "tick" tick |value| value.map_or_else(|| tick.clone(), |value| time(&value)),
        "warn_after" warn_after time,
        "error_after" error_after time,
        "startup_grace" grace time,
        "pool_threshold" pool_threshold |value| {
            value.map_or_else(|| format!("{:?}", Settings::POOL_THRESHOLD), |value| time(&value))
        },
        "stacks" stacks |value| format!("{value:?}").to_lowercase(),
        "turns" turns switch,
        "log" log switch,
        "poll_timing" poll_timing |value| format!("{value:?}").to_lowercase(),
        "recent" recent usize::to_string,
        "own_crates" own_code |code| code.named(),
    ];
    all
}

#[cfg(feature = "serve")]
fn of_server(settings: &Settings, served_at: Option<std::net::SocketAddr>) -> [SettingInForce; 2] {
    let address = served_at.map(|address| address.to_string());
    let stalls = settings.record_stalls.as_ref();
    let recordings = stalls.map(|stalls| format!("{:?}", stalls.directory));
    [("serve", address), ("record_stalls", recordings)].map(|(key, value)| {
        setting(settings, key, (value, None), |value| {
            value.clone().unwrap_or_else(|| "off".to_owned())
        })
    })
}

/// The width of a line of text.
const WIDTH: usize = 100;
/// The columns before the text of an observation.
const MARGIN: usize = 18;

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = std::env::current_exe().ok();
        let program = program.as_deref().and_then(std::path::Path::file_name);
        let (version, process) = (env!("CARGO_PKG_VERSION"), std::process::id());
        write!(f, "version {version}, process {process}")?;
        if let Some(program) = program {
            write!(f, " {program:?}")?;
        }
        write!(f, ", {}", features())?;
        let mut about = None;
        for observed in &self.observations {
            if about != Some(&observed.runtime) {
                about = Some(&observed.runtime);
                match &observed.runtime {
                    Some(runtime) => write!(f, "\n\nruntime {runtime:?}")?,
                    None => f.write_str("\n\nthe process")?,
                }
            }
            observed.write(f)?;
        }
        f.write_str("\n\nsettings")?;
        for SettingInForce { key, value, source } in &self.settings {
            let source = match source {
                SettingSource::Default => "",
                SettingSource::Code => "  (by the code)",
                SettingSource::Environment => "  (by TOKIO_STALL)",
            };
            write!(f, "\n  {key:<MARGIN$}{value}{source}")?;
        }
        Ok(())
    }
}

impl Observation {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.works { "yes" } else { "NO" };
        write!(f, "\n  {mark:<5}{:<11}", self.about)?;
        let mut column = MARGIN;
        for (index, word) in self.text.split(' ').enumerate() {
            let length = word.chars().count();
            if index > 0 && column + 1 + length > WIDTH {
                write!(f, "\n{:MARGIN$}", "")?;
                column = MARGIN;
            } else if index > 0 {
                f.write_char(' ')?;
                column += 1;
            }
            f.write_str(word)?;
            column += length;
        }
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn observed(works: bool, text: &str) -> Observation {
        Observation {
            runtime: None,
            about: "lines",
            works,
            text: text.to_owned(),
        }
    }

    #[test]
    fn long_texts_are_wrapped_at_words() {
        let text = "word ".repeat(60);
        let diagnosis = Diagnosis {
            observations: vec![observed(false, text.trim())],
            settings: Vec::new(),
        };
        let text = diagnosis.to_string();
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert!(lines[1].starts_with("  NO   lines      word"), "{text}");
        assert!(lines[2].starts_with("                  word"), "{text}");
        assert!(lines.iter().all(|line| line.len() <= WIDTH), "{text}");
        assert_eq!(text.matches("word").count(), 60);
    }

    #[test]
    fn a_setting_has_its_source() {
        let settings = Settings {
            recent: 9,
            log: false,
            from_env: vec!["log"],
            ..Settings::default()
        };
        let all = in_force(&settings, &[]);
        let source = |key: &str| {
            let found = all.iter().find(|setting| setting.key == key);
            found.map(|found| (found.value.as_str(), found.source))
        };
        let default = Some(("10ms", SettingSource::Default));
        assert_eq!(source("threshold"), default);
        assert_eq!(source("recent"), Some(("9", SettingSource::Code)));
        assert_eq!(source("log"), Some(("off", SettingSource::Environment)));
    }

    /// Each key that is shown is a key of the variable.
    #[test]
    fn settings_have_the_keys_of_the_environment() {
        for setting in in_force(&Settings::default(), &[]) {
            assert!(
                super::super::env::KEYS.contains(&setting.key),
                "{}",
                setting.key
            );
        }
    }
}
