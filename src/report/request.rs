//! The report of a slow request: what its time went into, and which stalls held it up.
//!
//! *Runs on:* every thread: plain data. `stall-reporter` makes it.

use super::cause::Cause;
use super::frame::Site;
use super::text::Human;
use std::fmt;
use std::time::{Duration, SystemTime};

/// A request that took long, and the reason; for
/// [`Builder::on_slow_request`](crate::Builder::on_slow_request).
///
/// `own`, `ready` and `waiting` add up to `total`.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct RequestReport {
    /// The name under which the runtime is watched.
    pub runtime: String,
    /// The route, as in `GET /users/{id}`.
    pub route: String,
    /// When the service was called, by the wall clock.
    #[cfg_attr(feature = "serde", serde(serialize_with = "super::unix_seconds"))]
    pub started_at: SystemTime,
    /// The time from the call of the service to the end of the response's body.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "total_seconds", serialize_with = "super::seconds")
    )]
    pub total: Duration,
    /// The time inside the request's own polls.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "own_seconds", serialize_with = "super::seconds")
    )]
    pub own: Duration,
    /// The longest of these polls.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "longest_poll_seconds", serialize_with = "super::seconds")
    )]
    pub longest_poll: Duration,
    /// The time for which it was ready, and no worker polled it.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "ready_seconds", serialize_with = "super::seconds")
    )]
    pub ready: Duration,
    /// The time for which it was not ready: it waited for a timer, a peer, or another task.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "waiting_seconds", serialize_with = "super::seconds")
    )]
    pub waiting: Duration,
    /// The part of `waiting` in which no socket and no timer of the runtime moved, because of a
    /// stall. The request may have waited for one of them. To within a tick.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "driver_frozen_seconds", serialize_with = "super::seconds")
    )]
    pub driver_frozen: Duration,
    /// The stall that its own longest poll was, if it was one: the request has held up others. The
    /// time `lost` to it is that poll, a part of `own`.
    pub own_stall: Option<LostTo>,
    /// The stalls of others that held it up, the largest loss first.
    pub lost: Vec<LostTo>,
}

/// The time that a request lost to one stall, in a [`RequestReport`].
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LostTo {
    /// The number of the stall: [`StallReport::id`](crate::StallReport::id).
    pub stall: u64,
    /// The part of the time `ready` that fell into the stall; for
    /// [`own_stall`](RequestReport::own_stall), the time of the poll. Two stalls at one time can
    /// both hold a request up.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "lost_seconds", serialize_with = "super::seconds")
    )]
    pub lost: Duration,
    /// The path of spans and names that the stalled poll was in.
    pub span: Option<String>,
    /// The line that held the worker, as far as it is known by now.
    pub site: Option<Site>,
    /// The reason why the worker was held.
    pub cause: Option<Cause>,
}

/// The most stalls of a request that its text shows.
const SHOWN: usize = 5;

impl fmt::Display for RequestReport {
    /// Writes a line of the request, and one for each of the stalls that held it up most.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { route, .. } = self;
        let (total, own) = (Human(self.total), Human(self.own));
        let (ready, waiting) = (Human(self.ready), Human(self.waiting));
        write!(
            f,
            "{route} took {total}: {own} own, {ready} ready and not polled, {waiting} waiting"
        )?;
        // Moments say nothing.
        if self.driver_frozen > self.total / 100 {
            let frozen = Human(self.driver_frozen);
            write!(f, " ({frozen} of it with a frozen driver)")?;
        }
        if let Some(stall) = &self.own_stall {
            write!(
                f,
                "\n  {} in its own stall #{}",
                Human(stall.lost),
                stall.stall
            )?;
            stall.write_facts(f)?;
        }
        let (shown, others) = self.lost.split_at(self.lost.len().min(SHOWN));
        shown.iter().try_for_each(|lost| write!(f, "\n  {lost}"))?;
        let lost: Duration = others.iter().map(|lost| lost.lost).sum();
        match others.len() {
            0 => Ok(()),
            1 => write!(f, "\n  {} behind 1 more stall", Human(lost)),
            stalls => write!(f, "\n  {} behind {stalls} more stalls", Human(lost)),
        }
    }
}

impl fmt::Display for LostTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} behind stall #{}", Human(self.lost), self.stall)?;
        self.write_facts(f)
    }
}

impl LostTo {
    fn write_facts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(cause) = self.cause {
            write!(f, ", {cause}")?;
        }
        if let Some(site) = &self.site {
            write!(f, ", {site}")?;
        }
        if let Some(span) = &self.span {
            write!(f, ", in {span}")?;
        }
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::report::Blocking;

    #[test]
    fn the_text_says_what_the_time_went_into() {
        let ms = Duration::from_millis;
        let report = RequestReport {
            runtime: "api".to_owned(),
            route: "GET /users/{id}".to_owned(),
            started_at: SystemTime::UNIX_EPOCH,
            total: ms(412),
            own: ms(18),
            longest_poll: ms(12),
            ready: ms(380),
            waiting: ms(14),
            driver_frozen: Duration::ZERO,
            own_stall: None,
            lost: vec![LostTo {
                stall: 17,
                lost: ms(379),
                span: Some("POST /rebuild".to_owned()),
                site: Some(Site {
                    function: "app::cache::rebuild".to_owned(),
                    file: Some("src/cache.rs".to_owned()),
                    line: Some(42),
                }),
                cause: Some(Cause::Blocked(Blocking::Sleep)),
            }],
        };
        let text = "GET /users/{id} took 412 ms: 18.0 ms own, 380 ms ready and not polled, \
                    14.0 ms waiting\n  379 ms behind stall #17, blocked/sleep, \
                    app::cache::rebuild (src/cache.rs:42), in POST /rebuild";
        assert_eq!(report.to_string(), text);
        // A stream meets many.
        let lost = report.lost[0].clone();
        let culprit = RequestReport {
            own_stall: Some(LostTo {
                lost: ms(12),
                ..lost.clone()
            }),
            lost: Vec::new(),
            ..report.clone()
        };
        let text = culprit.to_string();
        let own = "\n  12.0 ms in its own stall #17, blocked/sleep, app::cache::rebuild";
        assert!(text.contains(own), "{text}");
        let many = RequestReport {
            lost: vec![lost; 7],
            ..report
        };
        let text = many.to_string();
        assert_eq!(text.lines().count(), 1 + 5 + 1);
        assert!(text.ends_with("\n  758 ms behind 2 more stalls"), "{text}");
    }
}
