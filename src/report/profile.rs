//! Stalls over time, by site: their number, their total and longest time, and their stacks.
//!
//! *Runs on:* `stall-reporter` adds; threads that use a guard, and `stall-serve`, copy.
//!
//! The tables are bounded. A stall that does not fit is still counted, without its site.

use super::cause::Cause;
use super::frame::Site;
use super::stacks::{Labels, StackCalls, StackKey, StackTable, Weight};
use super::stall::StallReport;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime};

/// The most sites that are kept apart.
const SITES: usize = 1024;

/// The stalls since the watch was started, by site, made by
/// [`Guard::profile`](crate::Guard::profile).
///
/// Profiles of several watches, or processes of the same program, can be [merged](Self::merge).
#[derive(Clone, Debug, Default)]
pub struct Profile {
    sites: HashMap<Key, SiteTotals>,
    pub(super) stacks: StackTable,
    /// When it was begun, by the wall clock.
    pub(super) begun_at: Option<SystemTime>,
    /// When it was copied.
    pub(super) taken_at: Option<SystemTime>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    runtime: String,
    span: Option<String>,
    site: Option<Site>,
    cause: Cause,
}

/// All stalls at one site, in one span, for one cause; from [`Profile::sites`].
///
/// Calls that block are told apart by their line. Code that computes is found at another line each
/// time, so all of its function is one site, with the line of the longest stall.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SiteTotals {
    /// The name under which the runtime is watched.
    pub runtime: String,
    /// The path of spans and watched names, without fields.
    pub span: Option<String>,
    /// The site. `None` if no stack showed it.
    pub site: Option<Site>,
    /// The cause.
    pub cause: Cause,
    /// The number of stalls.
    pub count: u64,
    /// The time of all of them together.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "total_seconds", serialize_with = "super::seconds")
    )]
    pub total: Duration,
    /// The time of the longest one.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "longest_seconds", serialize_with = "super::seconds")
    )]
    pub longest: Duration,
}

impl SiteTotals {
    /// The totals of one stall.
    fn of(key: &Key, duration: Duration) -> SiteTotals {
        SiteTotals {
            runtime: key.runtime.clone(),
            span: key.span.clone(),
            site: key.site.clone(),
            cause: key.cause,
            count: 1,
            total: duration,
            longest: duration,
        }
    }

    fn add(&mut self, other: &SiteTotals) {
        self.count += other.count;
        self.total += other.total;
        if other.longest > self.longest {
            self.longest = other.longest;
            // The row of the stalls that did not fit has no site.
            self.site = self.site.take().and(other.site.clone());
        }
    }
}

/// The unit for the width of a frame in a flame graph; see [`Profile::folded`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FoldedBy {
    /// Time lost, in microseconds. The time of a stall is shared among its stacks.
    Microseconds,
    /// Number of stacks taken.
    Samples,
}

impl Profile {
    /// An empty profile that begins now.
    pub(crate) fn begin() -> Profile {
        Profile {
            begun_at: Some(SystemTime::now()),
            ..Profile::default()
        }
    }

    /// A copy as of now.
    pub(crate) fn take(&self) -> Profile {
        Profile {
            taken_at: Some(SystemTime::now()),
            ..self.clone()
        }
    }

    /// Adds a stall that is over.
    pub(crate) fn add(&mut self, report: &StallReport) {
        let key = Key {
            runtime: report.runtime.clone(),
            span: report.span_names(),
            site: shared(report.site.as_ref(), report.cause),
            cause: report.cause,
        };
        let totals = SiteTotals {
            site: report.site.clone(),
            ..SiteTotals::of(&key, report.duration)
        };
        self.add_site(key, &totals);
        self.add_stacks(report);
    }

    /// Shares the time of a stall among its stacks, to the nanosecond.
    fn add_stacks(&mut self, report: &StallReport) {
        let span = report.span_names();
        let labels = Labels {
            runtime: &report.runtime,
            span: span.as_deref(),
            cause: report.cause,
        };
        let mut left = Weight {
            stalls: 1,
            samples: report
                .stacks
                .iter()
                .map(|stack| u64::from(stack.count))
                .sum(),
            time: report.duration,
        };
        if left.samples == 0 {
            self.stacks.add_without_stack(labels, left);
            return;
        }
        let representative = report.representative_stack.unwrap_or(0);
        for (index, stack) in report.stacks.iter().enumerate() {
            let samples = u64::from(stack.count);
            let weight = Weight {
                stalls: u64::from(index == representative),
                samples,
                time: left
                    .time
                    .mul_f64(samples as f64 / left.samples.max(1) as f64),
            };
            left.samples -= weight.samples;
            left.time = left.time.saturating_sub(weight.time);
            self.stacks.add(labels, &stack.frames, weight);
        }
    }

    /// The number of stalls at the site of this one, and their total time, this one included.
    pub(crate) fn seen(&self, report: &StallReport) -> (u64, Duration) {
        if report.site.is_none() {
            return (0, Duration::ZERO);
        }
        let site = shared(report.site.as_ref(), report.cause);
        let is_here = |known: &Key| known.runtime == report.runtime && known.site == site;
        let earlier = self.sites.iter().filter(|(key, _)| is_here(key));
        earlier.fold((1, report.duration), |(count, total), (_, known)| {
            (count + known.count, total + known.total)
        })
    }

    /// Adds another profile to this one.
    ///
    /// # Examples
    ///
    /// ```
    /// let mut all = tokio_stall::Profile::default();
    /// for instance in [tokio_stall::Profile::default()] {
    ///     all.merge(&instance);
    /// }
    /// assert!(all.sites().is_empty());
    /// ```
    pub fn merge(&mut self, other: &Profile) {
        for (key, totals) in &other.sites {
            self.add_site(key.clone(), totals);
        }
        self.stacks.merge(&other.stacks);
        self.begun_at = [self.begun_at, other.begun_at].into_iter().flatten().min();
        self.taken_at = self.taken_at.max(other.taken_at);
    }

    /// The totals by site, most time first.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), tokio_stall::StartError> {
    /// let watch = tokio_stall::watch()?;
    /// for totals in watch.profile().sites().iter().take(10) {
    ///     let site = totals.site.as_ref().map(ToString::to_string);
    ///     println!("{:?} lost at {}", totals.total, site.unwrap_or_default());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn sites(&self) -> Vec<SiteTotals> {
        let mut sites: Vec<_> = self.sites.values().cloned().collect();
        sites.sort_by(|a, b| b.total.cmp(&a.total).then_with(|| a.span.cmp(&b.span)));
        sites
    }

    /// The stacks in the form that flame graph tools read. Each stack is a line: frames from the
    /// root on with `;` in between, then a number.
    ///
    /// ```text
    /// api;app::handlers::get_user;std::thread::sleep;nanosleep 126804
    /// ```
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_stall::FoldedBy;
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let watch = tokio_stall::watch()?;
    /// let folded = watch.profile().folded(FoldedBy::Microseconds);
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("stalls.folded");
    /// # #[cfg(any())]
    /// let path = "stalls.folded"; // for `inferno-flamegraph` and other tools
    /// std::fs::write(&path, folded)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn folded(&self, by: FoldedBy) -> String {
        let with_stack = |calls: &StackCalls| *calls != StackCalls::NoStack;
        self.folded_stacks(by, with_stack).concat()
    }

    /// The lines of [`Profile::folded`], sorted, of the stacks that are wanted. Stacks that differ
    /// in their lines, their span or their cause alone are one.
    pub(super) fn folded_stacks(
        &self,
        by: FoldedBy,
        is_wanted: impl Fn(&StackCalls) -> bool,
    ) -> Vec<String> {
        let mut weights: BTreeMap<String, (Duration, u64)> = BTreeMap::new();
        for (key, weight) in self.stacks.iter().filter(|(key, _)| is_wanted(&key.calls)) {
            let (time, samples) = weights.entry(self.folded_key(key)).or_default();
            *time += weight.time;
            *samples += weight.samples;
        }
        let value = |(time, samples): (Duration, u64)| match by {
            FoldedBy::Microseconds => time.as_micros(),
            FoldedBy::Samples => u128::from(samples),
        };
        let lines = weights.into_iter();
        lines
            .map(|(stack, weight)| format!("{stack} {}\n", value(weight)))
            .collect()
    }

    /// One line of a folded profile, without the number.
    fn folded_key(&self, key: &StackKey) -> String {
        let mut text = match key.calls {
            StackCalls::Other => return OTHER.to_owned(),
            StackCalls::Known(_) | StackCalls::NoStack => {
                folded_name(&key.runtime.replace([';', ' '], "_"))
            }
        };
        for (_, call) in self.stacks.calls(&key.calls).rev() {
            text.push(';');
            text.push_str(&folded_name(&call.name));
        }
        if key.calls == StackCalls::NoStack {
            text.push(';');
            text.push_str(NO_STACK);
        }
        text
    }

    fn add_site(&mut self, key: Key, totals: &SiteTotals) {
        let key = if self.sites.len() < SITES || self.sites.contains_key(&key) {
            key
        } else {
            // The table is full; the count must not be lost.
            Key {
                span: None,
                site: None,
                ..key
            }
        };
        self.sites
            .entry(key)
            .and_modify(|known| known.add(totals))
            .or_insert_with_key(|key| SiteTotals {
                span: key.span.clone(),
                site: totals.site.clone().filter(|_| key.site.is_some()),
                ..totals.clone()
            });
    }
}

fn shared(site: Option<&Site>, cause: Cause) -> Option<Site> {
    site.map(|site| site.shared(cause))
}

/// Adds a stall that is over to a profile, as a watch of the process itself does.
#[cfg(feature = "outside")]
pub fn add_to_profile(profile: &mut Profile, report: &StallReport) {
    profile.add(report);
}

/// The name of a frame for all stacks that did not fit.
pub(super) const OTHER: &str = "other";
/// The name of a frame for all stalls without a stack.
pub(super) const NO_STACK: &str = "[no stack]";

/// A name as one frame of a line: without the separator, without control characters, and not
/// ending like a line does, with a number of its own.
fn folded_name(name: &str) -> String {
    let separates = |character: char| character == ';' || character.is_control();
    let name = name.replace(separates, ":");
    match name.rsplit_once(' ') {
        Some((before, last)) if last.chars().all(|c| c.is_ascii_digit() || c == '.') => {
            format!("{before}_{last}")
        }
        _ => name,
    }
}

/// Removes the fields: `request{id=7} > get_user` → `request > get_user`. The set of their values
/// is unbounded. A parameter of a route stays: `GET /orders/{id}`.
pub(super) fn without_fields(span: &str) -> String {
    let mut kept = String::with_capacity(span.len());
    let mut rest = span;
    while let Some((before, after)) = rest.split_once('{') {
        kept.push_str(before);
        // Fields that were cut off have no end.
        let end = end_of_group(after).unwrap_or(after.len());
        let group = &after[..end];
        if kept.ends_with('/') && !group.contains('=') {
            kept.push('{');
            kept.push_str(group);
            kept.push('}');
        }
        rest = after.get(end + 1..).unwrap_or_default();
    }
    kept.push_str(rest);
    kept
}

/// The place of the brace that closes a group which is open at the beginning of a text.
fn end_of_group(text: &str) -> Option<usize> {
    let mut depth = 1_usize;
    text.bytes().position(|byte| {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        depth == 0
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::report::{Blocking, Frame, Origin, example};

    fn totals(site: &str, milliseconds: u64) -> (Key, SiteTotals) {
        let site = Some(Site {
            function: site.to_owned(),
            file: None,
            line: None,
        });
        let key = Key {
            runtime: "api".to_owned(),
            span: None,
            site,
            cause: Cause::Cpu,
        };
        let totals = SiteTotals::of(&key, Duration::from_millis(milliseconds));
        (key, totals)
    }

    #[test]
    fn profiles_add_up() {
        let mut sum = Profile::default();
        let mut other = Profile::default();
        for (profile, site, time) in [(&mut sum, "a", 10), (&mut other, "a", 30)] {
            let (key, totals) = totals(site, time);
            profile.add_site(key, &totals);
        }
        let (key, one) = totals("b", 5);
        other.add_site(key, &one);
        let weight = Weight {
            stalls: 1,
            samples: 1,
            time: Duration::from_millis(2),
        };
        let frames = [Frame::of("a", Origin::Own)];
        for (profile, cause) in [(&mut sum, Cause::Cpu), (&mut other, Cause::Unknown)] {
            let labels = Labels {
                runtime: "api",
                span: None,
                cause,
            };
            profile.stacks.add(labels, &frames, weight);
        }
        sum.merge(&other);
        let sites = sum.sites();
        let figures: Vec<_> = sites
            .iter()
            .map(|site| (site.count, site.total.as_millis(), site.longest.as_millis()))
            .collect();
        assert_eq!(figures, [(2, 40, 30), (1, 5, 5)]);
        assert_eq!(sum.folded(FoldedBy::Microseconds), "api;a 4000\n");
        assert_eq!(sum.folded(FoldedBy::Samples), "api;a 2\n");
    }

    #[test]
    fn a_function_that_computes_is_one_site_and_lines_that_block_are_two() {
        let mut profile = Profile::default();
        let mut stall = example();
        for (cause, line, millis) in [
            (Cause::Cpu, 10, 20),
            (Cause::Cpu, 12, 40),
            (Cause::Cpu, 11, 30),
            (Cause::Blocked(Blocking::File), 20, 5),
            (Cause::Blocked(Blocking::File), 21, 4),
        ] {
            stall.cause = cause;
            stall.site = Some(Site {
                function: "app::f".to_owned(),
                file: Some("src/f.rs".to_owned()),
                line: Some(line),
            });
            stall.duration = Duration::from_millis(millis);
            profile.add(&stall);
        }
        let sites = profile.sites().into_iter();
        let sites = sites.map(|totals| (totals.site.and_then(|site| site.line), totals.count));
        let sites: Vec<_> = sites.collect();
        assert_eq!(sites, [(Some(12), 3), (Some(20), 1), (Some(21), 1)]);
        assert_eq!(profile.seen(&stall).0, 1 + 1, "at its line");
        stall.cause = Cause::Cpu;
        assert_eq!(profile.seen(&stall).0, 1 + 3, "in its function");
    }

    #[test]
    fn a_full_table_loses_sites_but_no_stalls() {
        let mut profile = Profile::default();
        for site in 0..SITES + 10 {
            let (key, totals) = totals(&site.to_string(), 1 + site as u64);
            profile.add_site(key, &totals);
        }
        let sites = profile.sites();
        assert_eq!(sites.len(), SITES + 1);
        let stalls: u64 = sites.iter().map(|site| site.count).sum();
        assert_eq!(stalls, SITES as u64 + 10);
        let without = sites.iter().find(|site| site.site.is_none()).unwrap();
        assert_eq!(without.count, 10);
    }

    #[test]
    fn fields_of_spans_are_left_out() {
        for (span, without) in [
            ("request{id=7 to={a}} > get_user", "request > get_user"),
            ("request{id=7 > get_user", "request"),
            ("request > GET /orders/{id}", "request > GET /orders/{id}"),
            ("POST /{a}/{*rest}{id=7}", "POST /{a}/{*rest}"),
            ("at /{id=7}", "at /"),
            ("", ""),
        ] {
            assert_eq!(without_fields(span), without);
        }
    }

    #[test]
    fn a_name_is_one_frame_of_a_line() {
        for (name, folded) in [
            ("my api;1", "my api:1"),
            ("a\nother 7", "a:other_7"),
            ("<A as B>::c", "<A as B>::c"),
            ("half 1.5", "half_1.5"),
        ] {
            assert_eq!(folded_name(name), folded);
        }
    }
}
