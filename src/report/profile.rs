//! Stalls over time, by site: their number, their total and longest time, and their stacks.
//!
//! *Runs on:* `stall-reporter` adds; threads that use a guard copy.
//!
//! The tables are bounded. A stall that does not fit is still counted, without its site.

use super::cause::Cause;
use super::frame::{Frame, Origin, Site};
use super::stall::StallReport;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

/// The most sites that are kept apart.
const SITES: usize = 1024;
/// The most stacks that are kept apart.
const STACKS: usize = 4096;

/// The stalls since the watch was started, by site, made by
/// [`Guard::profile`](crate::Guard::profile).
///
/// Profiles of several watches, or processes of the same program, can be [merged](Self::merge).
#[derive(Clone, Debug, Default)]
pub struct Profile {
    sites: HashMap<Key, SiteTotals>,
    /// By folded stack.
    stacks: HashMap<String, Weight>,
    other: Weight,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    runtime: String,
    span: Option<String>,
    site: Option<Site>,
    cause: Cause,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Weight {
    samples: u64,
    time: Duration,
}

impl Weight {
    fn add(&mut self, other: Weight) {
        self.samples += other.samples;
        self.time += other.time;
    }
}

/// All stalls at one site, in one span, for one cause.
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
        self.longest = self.longest.max(other.longest);
    }
}

/// The unit for the width of a frame in a flame graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FoldedBy {
    /// Time lost, in microseconds. The time of a stall is shared among its stacks.
    Microseconds,
    /// Number of stacks taken.
    Samples,
}

impl Profile {
    /// Adds a stall that is over.
    pub(crate) fn add(&mut self, report: &StallReport) {
        let key = Key {
            runtime: report.runtime.clone(),
            span: report.span.as_deref().map(without_fields),
            site: report.site.clone(),
            cause: report.cause,
        };
        let totals = SiteTotals::of(&key, report.duration);
        self.add_site(key, &totals);
        let samples: u32 = report.stacks.iter().map(|stack| stack.count).sum();
        for stack in &report.stacks {
            let share = f64::from(stack.count) / f64::from(samples.max(1));
            let weight = Weight {
                samples: u64::from(stack.count),
                time: report.duration.mul_f64(share),
            };
            self.add_stack(folded(&report.runtime, &stack.frames), weight);
        }
    }

    /// The number of stalls at the site of this one, and their total time, this one included.
    pub(crate) fn seen(&self, report: &StallReport) -> (u64, Duration) {
        if report.site.is_none() {
            return (0, Duration::ZERO);
        }
        let earlier = self
            .sites
            .values()
            .filter(|known| known.runtime == report.runtime && known.site == report.site);
        earlier.fold((1, report.duration), |(count, total), known| {
            (count + known.count, total + known.total)
        })
    }

    /// Adds another profile to this one.
    pub fn merge(&mut self, other: &Profile) {
        for (key, totals) in &other.sites {
            self.add_site(key.clone(), totals);
        }
        for (stack, weight) in &other.stacks {
            self.add_stack(stack.clone(), *weight);
        }
        self.other.add(other.other);
    }

    /// The totals by site, most time first.
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
    pub fn folded(&self, by: FoldedBy) -> String {
        let value = |weight: &Weight| match by {
            FoldedBy::Microseconds => weight.time.as_micros(),
            FoldedBy::Samples => u128::from(weight.samples),
        };
        let mut lines: Vec<_> = self
            .stacks
            .iter()
            .map(|(stack, weight)| format!("{stack} {}\n", value(weight)))
            .collect();
        lines.sort_unstable();
        let mut text = lines.concat();
        if self.other != Weight::default() {
            writeln!(text, "other {}", value(&self.other)).expect("a string takes everything");
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
                site: key.site.clone(),
                ..totals.clone()
            });
    }

    fn add_stack(&mut self, stack: String, weight: Weight) {
        if self.stacks.len() < STACKS || self.stacks.contains_key(&stack) {
            self.stacks.entry(stack).or_default().add(weight);
        } else {
            self.other.add(weight);
        }
    }
}

/// One line of a folded profile, without the number. It begins at the poll: the frames below are
/// tokio's and always the same.
fn folded(runtime: &str, frames: &[Frame]) -> String {
    let mut text = runtime.replace([';', ' '], "_");
    let of_the_poll = super::site::of_the_poll(frames);
    let shown = of_the_poll
        .iter()
        .rev()
        .filter(|frame| frame.origin != Origin::Detector);
    for frame in shown {
        let name = frame.written_name().unwrap_or_else(|| frame.to_string());
        text.push(';');
        text.push_str(&name.replace(';', ":"));
    }
    text
}

/// Removes the fields: `request{id=7} > get_user` → `request > get_user`. The set of their values
/// is unbounded.
pub(super) fn without_fields(span: &str) -> String {
    let mut depth = 0_usize;
    span.chars()
        .filter(|character| {
            let outside = depth == 0;
            match character {
                '{' => depth += 1,
                '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            outside && *character != '{'
        })
        .collect()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

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
            samples: 1,
            time: Duration::from_millis(2),
        };
        sum.add_stack("api;a".to_owned(), weight);
        other.add_stack("api;a".to_owned(), weight);
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
    fn a_full_table_loses_sites_but_no_stalls() {
        let mut profile = Profile::default();
        for site in 0..SITES + 10 {
            let (key, totals) = totals(&site.to_string(), 1);
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
        assert_eq!(
            without_fields("request{id=7 to={a}} > get_user"),
            "request > get_user"
        );
    }
}
