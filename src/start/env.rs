//! The settings of a watch as one line of text: the environment variable `TOKIO_STALL`.
//!
//! *Runs on:* the user's threads.
//! *Must not:* show the token of the server, in errors or in `Debug`.
//!
//! All but [`EnvText::read`] is pure. The text is read when the builder is made and understood when
//! the watch is started, so it wins over all calls of the builder, and its errors are errors of the
//! start.

use super::Builder;
use crate::engine::{Settings, Stacks};
use crate::error::StartError;
use crate::slot::PollTiming;
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::time::Duration;

/// The name of the variable.
pub(super) const VARIABLE: &str = "TOKIO_STALL";

/// The most characters of a wrong value that an error shows.
const SHOWN: usize = 60;

/// The key whose value is a secret.
const TOKEN: &str = "serve_token";

/// All keys. Most are methods of the builder.
pub(super) const KEYS: &[&str] = &[
    "threshold",
    "tick",
    "warn_after",
    "error_after",
    "startup_grace",
    "pool_threshold",
    "stacks",
    "turns",
    "log",
    "poll_timing",
    "recent",
    "own_crates",
    "site_labels",
    "poll_labels",
    "serve",
    TOKEN,
    "record_stalls",
    "record_longer_than",
    "record_keep",
    "one_worker",
    "all_workers",
];

/// Short forms of keys.
const SHORT: &[(&str, &str)] = &[
    ("warn", "warn_after"),
    ("error", "error_after"),
    ("grace", "startup_grace"),
    ("pool", "pool_threshold"),
];

/// The text of the variable, or the bytes that are no text. `Debug` does not show it, since it may
/// have a token.
#[derive(Clone)]
pub(super) struct EnvText(OsString);

impl EnvText {
    /// Reads the variable of this process. `None` if it is unset.
    pub(super) fn read() -> Option<EnvText> {
        env::var_os(VARIABLE).map(EnvText)
    }

    #[cfg(all(test, not(loom)))]
    fn of(text: &str) -> EnvText {
        EnvText(text.into())
    }
}

impl fmt::Debug for EnvText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EnvText(…)")
    }
}

/// One part of the text: a word, or a key and its value.
struct EnvPart<'a> {
    key: &'a str,
    value: Option<&'a str>,
}

impl<'a> EnvPart<'a> {
    fn of(text: &'a str) -> EnvPart<'a> {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key.trim(), Some(value.trim())),
            None => (text, None),
        };
        let long = SHORT.iter().find(|(short, _)| *short == key);
        EnvPart {
            key: long.map_or(key, |(_, long)| long),
            value,
        }
    }

    /// The error about this part.
    fn wrong(&self, why: impl Into<String>) -> StartError {
        let is_secret = self.key == TOKEN;
        StartError::EnvUnusable {
            key: clipped(self.key),
            value: self.value.filter(|_| !is_secret).map(clipped),
            why: why.into(),
        }
    }
}

fn clipped(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl Builder {
    /// Applies the text of the environment, if there is one.
    pub(super) fn with_environment(mut self) -> Result<Builder, StartError> {
        match self.env.take() {
            Some(EnvText(text)) => {
                let text = text.to_str().ok_or(StartError::EnvNotUnicode)?;
                self.with_text(text)
            }
            None => Ok(self),
        }
    }

    fn with_text(mut self, text: &str) -> Result<Builder, StartError> {
        let parts = text.split(',').map(str::trim);
        for text in parts.filter(|text| !text.is_empty()) {
            let part = EnvPart::of(text);
            match (part.key, part.value) {
                ("off", None) => self.off = true,
                ("doctor", None) => self.doctor = true,
                ("off" | "doctor", Some(_)) => return Err(part.wrong("it takes no value")),
                (_, value) => self = self.with_part(&part, value)?,
            }
        }
        self.has_directory()
    }

    /// Checks that recordings have a directory, if the text says something about them.
    #[cfg(feature = "serve")]
    fn has_directory(self) -> Result<Builder, StartError> {
        let mut keys = self.settings.from_env.iter();
        let about = keys.find(|key| key.starts_with("record_")).copied();
        let recordings = self.settings.record_stalls.as_ref();
        let lacks_one = recordings.is_some_and(|stalls| stalls.directory.as_os_str().is_empty());
        match about.filter(|_| lacks_one) {
            Some(key) => {
                Err(EnvPart { key, value: None }.wrong("give record_stalls a directory, too"))
            }
            None => Ok(self),
        }
    }

    #[cfg(not(feature = "serve"))]
    fn has_directory(self) -> Result<Builder, StartError> {
        Ok(self)
    }

    fn with_part(mut self, part: &EnvPart<'_>, value: Option<&str>) -> Result<Builder, StartError> {
        let known = KEYS.iter().find(|key| **key == part.key);
        let Some(key) = known else {
            return Err(self.unknown(part));
        };
        if self.settings.from_env.contains(key) {
            return Err(part.wrong("it is there twice"));
        }
        self.settings.from_env.push(key);
        let value = value.filter(|value| !value.is_empty());
        let value = value.ok_or_else(|| part.wrong(format!("write {key}=…")))?;
        self.set(key, value).map_err(|why| part.wrong(why))
    }

    /// The error about a word that is no key.
    fn unknown(&self, part: &EnvPart<'_>) -> StartError {
        // A comma in a token would make its rest a word.
        if part.value.is_none() && self.settings.from_env.last() == Some(&TOKEN) {
            let token = EnvPart {
                key: TOKEN,
                ..*part
            };
            return token.wrong("a comma ends a value, and the text after it is no setting");
        }
        let unknown = EnvPart {
            value: None,
            ..*part
        };
        match nearest(part.key) {
            Some(key) => unknown.wrong(format!("there is no such setting; did you mean `{key}`?")),
            None => unknown.wrong(format!(
                "there is no such setting; there are off, doctor, {}",
                KEYS.join(", ")
            )),
        }
    }

    fn set(self, key: &str, value: &str) -> Result<Builder, String> {
        match key {
            "threshold" => Ok(self.threshold(threshold(value)?)),
            "tick" => Ok(self.tick(duration(value)?)),
            "warn_after" => Ok(self.warn_after(duration(value)?)),
            "error_after" => Ok(self.error_after(duration(value)?)),
            "startup_grace" => Ok(self.startup_grace(duration(value)?)),
            "pool_threshold" => Ok(self.pool_threshold(duration(value)?)),
            "stacks" => Ok(self.stacks(stacks(value)?)),
            "turns" => Ok(self.turns(switch(value)?)),
            "log" => Ok(self.log(switch(value)?)),
            "poll_timing" => Ok(self.poll_timing(timing(value)?)),
            "recent" => Ok(self.recent(number(value)?)),
            "own_crates" => Ok(self.own_crates(value.split('+').map(str::trim))),
            "site_labels" | "poll_labels" => self.set_labels(key, number(value)?),
            _ => self.set_server(key, value),
        }
    }

    #[cfg(feature = "metrics")]
    fn set_labels(self, key: &str, number: usize) -> Result<Builder, String> {
        match key {
            "site_labels" => Ok(self.site_labels(number)),
            _ => Ok(self.poll_labels(number)),
        }
    }

    #[cfg(not(feature = "metrics"))]
    fn set_labels(self, _: &str, _: usize) -> Result<Builder, String> {
        Err(needs_feature("metrics"))
    }

    #[cfg(not(feature = "serve"))]
    fn set_server(self, _: &str, _: &str) -> Result<Builder, String> {
        Err(needs_feature("serve"))
    }

    #[cfg(feature = "serve")]
    fn set_server(mut self, key: &str, value: &str) -> Result<Builder, String> {
        match (key, value) {
            ("serve", "off") => self.serve = None,
            ("serve", value) => {
                let address: std::net::SocketAddr = value
                    .parse()
                    .map_err(|_| "give an address and a port, as in 127.0.0.1:9464, or off")?;
                return Ok(self.serve(address));
            }
            (TOKEN, value) => {
                let token = crate::serve::ServeToken::new(value);
                let token = token
                    .map_err(|why| format!("it {why}; give 16 to 256 random letters and digits"))?;
                self.serve_token = Some(Ok(token));
            }
            ("one_worker", value) => {
                self.settings.liveness = self.settings.liveness.one_worker(age(value)?);
            }
            ("all_workers", value) => {
                self.settings.liveness = self.settings.liveness.all_workers(age(value)?);
            }
            ("record_stalls", "off") => self.settings.record_stalls = None,
            (key, value) => return self.set_recording(key, value),
        }
        Ok(self)
    }

    /// Sets a part of the recordings. The parts that nobody gives are those of the guide.
    #[cfg(feature = "serve")]
    fn set_recording(mut self, key: &str, value: &str) -> Result<Builder, String> {
        let recordings = self.settings.record_stalls.take();
        let (mut directory, mut longer_than, mut keep) = match recordings {
            Some(stalls) => (stalls.directory, stalls.longer_than, stalls.keep),
            None => (std::path::PathBuf::new(), Duration::from_millis(250), 20),
        };
        match key {
            "record_stalls" => directory = value.into(),
            "record_longer_than" => longer_than = duration(value)?,
            _ => keep = number(value)?,
        }
        Ok(self.record_stalls(directory, longer_than, keep))
    }
}

/// Names the part of the text that has led to this error of the settings.
pub(super) fn blame(settings: &Settings, error: StartError) -> StartError {
    let has = |key: &str| settings.from_env.contains(&key);
    let (key, value, why) = match &error {
        StartError::TickOutOfRange { tick, threshold } if has("tick") || has("threshold") => {
            let why = format!(
                "the tick of {tick:?} does not fit into the threshold of {threshold:?}; give \
                 both, or leave out the tick"
            );
            match has("tick") {
                true => ("tick", format!("{tick:?}"), why),
                false => ("threshold", format!("{threshold:?}"), why),
            }
        }
        StartError::SignalUnusable { signal } if has("stacks") => (
            "stacks",
            signal.to_string(),
            "stacks cannot be taken with this signal; give auto, off, or a real-time signal \
             that nobody uses"
                .to_owned(),
        ),
        StartError::SignalTaken { signal } if has("stacks") => (
            "stacks",
            signal.to_string(),
            "this signal has a handler already; give auto, off, or another one".to_owned(),
        ),
        _ => return error,
    };
    StartError::EnvUnusable {
        key: key.to_owned(),
        value: Some(value),
        why,
    }
}

/// The key that begins and ends as this word does.
fn nearest(word: &str) -> Option<&'static str> {
    fn common(one: impl Iterator<Item = char>, other: impl Iterator<Item = char>) -> usize {
        one.zip(other)
            .take_while(|(one, other)| one == other)
            .count()
    }
    let likeness = |key: &str| {
        let same = common(key.chars(), word.chars());
        let same = same + common(key.chars().rev(), word.chars().rev());
        same.min(key.len())
    };
    let nearest = KEYS.iter().max_by_key(|key| likeness(key))?;
    (likeness(nearest) * 3 >= nearest.len() * 2).then_some(*nearest)
}

#[cfg(any(not(feature = "serve"), not(feature = "metrics")))]
fn needs_feature(feature: &str) -> String {
    format!("it needs the feature `{feature}` of tokio-stall, which this program is built without")
}

fn threshold(value: &str) -> Result<Duration, String> {
    let threshold = duration(value)?;
    match threshold >= Settings::MIN_THRESHOLD {
        true => Ok(threshold),
        false => Err("such polls are ordinary; give 100us or more".to_owned()),
    }
}

fn switch(value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("give on or off".to_owned()),
    }
}

fn stacks(value: &str) -> Result<Stacks, String> {
    match value {
        "auto" | "on" => Ok(Stacks::Auto),
        "off" => Ok(Stacks::Off),
        signal => {
            let signal = signal.parse().map(Stacks::Signal);
            signal.map_err(|_| "give auto, off, or the number of a signal".to_owned())
        }
    }
}

fn timing(value: &str) -> Result<PollTiming, String> {
    match value {
        "every" => Ok(PollTiming::Every),
        "sampled" => Ok(PollTiming::Sampled),
        "off" => Ok(PollTiming::Off),
        _ => Err("give every, sampled or off".to_owned()),
    }
}

fn number(value: &str) -> Result<usize, String> {
    let number = value.parse();
    number.map_err(|_| "give a whole number".to_owned())
}

/// An age, or `off` for never.
#[cfg(feature = "serve")]
fn age(value: &str) -> Result<Option<Duration>, String> {
    match value {
        "off" => Ok(None),
        value => duration(value).map(Some),
    }
}

/// The units of durations, in nanoseconds.
const UNITS: [(&str, u64); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// The fix for a wrong duration.
const NO_DURATION: &str = "give a number and a unit, as in 500us, 20ms, 1.5s or 2m";

/// Reads `20ms`, `1.5s`. Digits below a nanosecond are cut off.
fn duration(value: &str) -> Result<Duration, String> {
    read_duration(value).ok_or_else(|| NO_DURATION.to_owned())
}

fn read_duration(value: &str) -> Option<Duration> {
    let end = value.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = value.split_at(end);
    let (_, unit) = UNITS.iter().find(|(name, _)| *name == unit.trim())?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole: u64 = whole.parse().ok()?;
    let is_number = !fraction.is_empty() && fraction.bytes().all(|byte| byte.is_ascii_digit());
    let fraction = is_number.then(|| &fraction[..fraction.len().min(9)])?;
    let parts = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let fraction = u128::from(fraction.parse::<u64>().ok()?) * u128::from(*unit) / parts;
    let nanoseconds = u128::from(whole) * u128::from(*unit) + fraction;
    u64::try_from(nanoseconds).ok().map(Duration::from_nanos)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn understood(builder: Builder, text: &str) -> Result<Builder, StartError> {
        let env = Some(EnvText::of(text));
        Builder { env, ..builder }.with_environment()
    }

    fn settings(text: &str) -> Settings {
        understood(Builder::new(), text).unwrap().settings
    }

    #[track_caller]
    fn error(text: &str) -> String {
        understood(Builder::new(), text).unwrap_err().to_string()
    }

    #[test]
    fn each_setting_is_understood() {
        let text = "threshold=20ms, tick=5ms,warn=250ms,error=2s,grace=0s,pool=1.5s,stacks=off,\
                    turns=off,log=off,poll_timing=every,recent=9,own_crates=app+my-db";
        let all = settings(text);
        assert_eq!((all.threshold, all.tick), (20 * MS, Some(5 * MS)));
        assert_eq!((all.warn_after, all.error_after), (250 * MS, 2_000 * MS));
        assert_eq!(
            (all.grace, all.pool_threshold),
            (Duration::ZERO, Some(1_500 * MS))
        );
        assert_eq!((all.stacks, all.recent), (Stacks::Off, 9));
        assert!(!all.turns && !all.log);
        assert_eq!(all.poll_timing, PollTiming::Every);
        assert_eq!(all.from_env.len(), 12);
        assert_eq!(settings("stacks=37").stacks, Stacks::Signal(37));
    }

    #[cfg(feature = "serve")]
    #[test]
    fn each_setting_of_the_server_is_understood() {
        let text = "serve=127.0.0.1:9464,serve_token=0123456789abcdef,record_stalls=/tmp/s,\
                    record_longer_than=1s,record_keep=3,one_worker=off,all_workers=9s,\
                    site_labels=1,poll_labels=2";
        let all = understood(Builder::new(), text).unwrap();
        assert_eq!(all.serve, Some(([127, 0, 0, 1], 9464).into()));
        assert!(all.serve_token.unwrap().is_ok());
        let stalls = all.settings.record_stalls.unwrap();
        assert_eq!((stalls.longer_than, stalls.keep), (1_000 * MS, 3));
        let liveness = crate::engine::Liveness::default().one_worker(None);
        let liveness = liveness.all_workers(Some(9_000 * MS));
        assert_eq!(all.settings.liveness, liveness);
        let off = Builder::new().serve(([127, 0, 0, 1], 0));
        assert_eq!(understood(off, "serve=off").unwrap().serve, None);
    }

    /// Each key has an example in the tests above.
    #[test]
    fn each_key_is_a_setting() {
        for key in KEYS {
            let problem = error(&format!("{key}="));
            assert!(problem.contains(&format!("write {key}=…")), "{problem}");
        }
    }

    #[cfg(feature = "serve")]
    #[test]
    fn recordings_need_a_directory_from_somewhere() {
        assert!(error("record_keep=3").contains("give record_stalls a directory"));
        let code = Builder::new().record_stalls("/tmp/s", MS, 7);
        let both = understood(code, "record_keep=3").unwrap().settings;
        let stalls = both.record_stalls.unwrap();
        assert_eq!((stalls.longer_than, stalls.keep), (MS, 3));
    }

    #[test]
    fn nothing_is_changed_by_no_text() {
        for text in ["", " ", ",", " , ,"] {
            let settings = settings(text);
            assert_eq!(settings.threshold, Settings::THRESHOLD);
            assert!(settings.from_env.is_empty());
        }
        // Positive control.
        assert_eq!(settings("threshold=1ms,").threshold, MS);
    }

    #[test]
    fn the_text_wins_over_calls_of_the_builder() {
        let builder = Builder::new().threshold(20 * MS).warn_after(7 * MS);
        let settings = understood(builder, "threshold=30ms").unwrap().settings;
        assert_eq!((settings.threshold, settings.warn_after), (30 * MS, 7 * MS));
        assert_eq!(settings.from_env, ["threshold"]);
    }

    #[test]
    fn words_have_no_value() {
        let words = understood(Builder::new(), "off, doctor").unwrap();
        assert!(words.off && words.doctor);
        let neither = understood(Builder::new(), "log=off").unwrap();
        assert!(!neither.off && !neither.doctor);
        assert!(error("off=1").contains("takes no value"));
    }

    #[test]
    fn an_error_names_the_key_the_value_and_the_right_form() {
        for (text, parts) in [
            ("threshold=20", ["threshold", "\"20\"", "20ms"]),
            ("threshold=50us", ["threshold", "\"50us\"", "100us or more"]),
            ("warn=fast", ["warn_after", "\"fast\"", "1.5s"]),
            ("stacks=maybe", ["stacks", "\"maybe\"", "auto, off"]),
            ("log=yes", ["log", "\"yes\"", "on or off"]),
            ("recent=-1", ["recent", "\"-1\"", "whole number"]),
            (
                "poll_timing=all",
                ["poll_timing", "\"all\"", "every, sampled"],
            ),
            (
                "treshold=20ms",
                ["treshold", "no such setting", "`threshold`"],
            ),
            ("colour=red", ["colour", "no such setting", "warn_after"]),
            ("log=on,log=on", ["log", "\"on\"", "twice"]),
        ] {
            let problem = error(text);
            assert!(problem.starts_with("the environment variable TOKIO_STALL"));
            for part in parts {
                assert!(problem.contains(part), "{part} in {problem}");
            }
        }
    }

    #[cfg(not(feature = "serve"))]
    #[test]
    fn a_setting_of_a_feature_that_is_not_built_names_it() {
        for key in ["serve", "serve_token", "record_stalls", "one_worker"] {
            let problem = error(&format!("{key}=x"));
            assert!(problem.contains("needs the feature `serve`"), "{problem}");
        }
    }

    #[test]
    fn a_token_is_in_no_text() {
        let secret = "hunter2hunter2";
        for text in [
            format!("serve_token={secret}"),
            format!("serve_token={secret}ü{secret}"),
            format!("serve_token=0123456789abcdef,{secret}"),
            format!("serve_tokn={secret}"),
        ] {
            let problem = understood(Builder::new(), &text).unwrap_err();
            let shown = format!("{problem} {problem:?}");
            assert!(!shown.contains(secret), "{shown}");
            assert!(shown.contains("serve_tok"), "{shown}");
            let env = Some(EnvText::of(&text));
            let debug = format!(
                "{:?}",
                Builder {
                    env,
                    ..Builder::new()
                }
            );
            assert!(!debug.contains(secret), "{debug}");
        }
        // Positive control: another value is shown.
        assert!(error(&format!("log={secret}")).contains(secret));
    }

    #[test]
    fn hostile_values_are_escaped_and_cut() {
        let problem = error("log=\u{1b}[31m\nred");
        assert!(!problem.contains(['\u{1b}', '\n']), "{problem:?}");
        let long = error(&format!("log={}", "ü".repeat(1_000)));
        assert!(long.contains("ü…") && long.chars().count() < 200, "{long}");
    }

    #[test]
    fn errors_of_the_whole_are_blamed_on_their_key() {
        let blamed = |builder: Builder, text: &str| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap();
            let env = Some(EnvText::of(text));
            let plan = Builder { env, ..builder }.plan(Some(runtime.handle().clone()));
            plan.unwrap_err().to_string()
        };
        let tick = blamed(Builder::new(), "tick=11ms");
        assert!(tick.contains("sets tick to \"11ms\""), "{tick}");
        let threshold = blamed(Builder::new().tick(8 * MS), "threshold=5ms");
        assert!(
            threshold.contains("sets threshold to \"5ms\""),
            "{threshold}"
        );
        let code = blamed(Builder::new().tick(11 * MS), "recent=1");
        assert!(!code.contains("TOKIO_STALL"), "{code}");
        if crate::capture::IS_SUPPORTED {
            let stacks = blamed(Builder::new(), "stacks=9");
            assert!(stacks.contains("sets stacks to \"9\""), "{stacks}");
        }
    }

    #[test]
    fn durations_need_a_number_and_a_unit() {
        for (text, nanoseconds) in [
            ("0s", 0),
            ("1ns", 1),
            ("500us", 500_000),
            ("500µs", 500_000),
            ("1.5ms", 1_500_000),
            ("20 ms", 20_000_000),
            ("2m", 120_000_000_000),
            ("0.0000000019s", 1),
        ] {
            let wanted = Some(Duration::from_nanos(nanoseconds));
            assert_eq!(read_duration(text), wanted, "{text}");
        }
        for text in [
            "",
            "s",
            "1",
            ".5s",
            "1.s",
            "1..5s",
            "-1s",
            "1e3s",
            "1sec",
            "99999999999h",
        ] {
            assert_eq!(read_duration(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_duration_is_read_as_it_is_written(nanoseconds in any::<u64>()) {
            let written = Duration::from_nanos(nanoseconds);
            prop_assert_eq!(read_duration(&format!("{written:?}")), Some(written));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            understood(Builder::new(), &text).ok();
            read_duration(&text);
        }

        #[test]
        fn no_value_panics(key in 0..KEYS.len(), value in "[0-9a-z.,=µ:+-]{0,12}") {
            understood(Builder::new(), &format!("{}={value}", KEYS[key])).ok();
        }
    }
}
