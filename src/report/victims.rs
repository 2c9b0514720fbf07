//! The requests that a stall held up.
//!
//! *Runs on:* every thread: plain data. `stall-reporter` makes it.

use super::text::Human;
use std::fmt;
use std::time::Duration;

/// The requests that a stall held up: they were ready while it went on, and no worker polled them.
///
/// Requests are those of services with [`RequestLayer`](crate::tower::RequestLayer). A request
/// counts if it was ready for a millisecond or more, and some of that time fell into the stall.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Victims {
    /// Requests that were held up, and have been polled since.
    pub requests: u64,
    /// Requests that were ready when the report was made, and had not been polled yet.
    pub waiting: u64,
    /// Requests that waited for something, while no socket and no timer of the runtime moved
    /// because of the stall. Those that waited for one of them lost up to that time.
    pub frozen: u64,
    /// The time that `requests` lost in the stall, together.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "total_seconds", serialize_with = "super::seconds")
    )]
    pub total: Duration,
    /// The longest time that one of them lost.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "longest_seconds", serialize_with = "super::seconds")
    )]
    pub longest: Duration,
    /// The three routes that lost most.
    pub routes: Vec<RouteVictims>,
}

/// The requests of one route that a stall held up, of services with
/// [`RequestLayer`](crate::tower::RequestLayer).
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct RouteVictims {
    /// The route, as in `GET /users/{id}`.
    pub route: String,
    /// The number of its requests.
    pub requests: u64,
    /// The time that they lost, together.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "total_seconds", serialize_with = "super::seconds")
    )]
    pub total: Duration,
}

impl Victims {
    /// Whether any request was held up, or waits.
    pub(crate) fn is_any(&self) -> bool {
        self.requests > 0 || self.waiting > 0 || self.frozen > 0
    }
}

/// The victims in some words, as a log shows them.
pub(super) struct InShort<'a>(&'a Victims);

impl Victims {
    pub(super) fn in_short(&self) -> InShort<'_> {
        InShort(self)
    }
}

impl fmt::Display for InShort<'_> {
    /// `held up 37 requests, 14.1 s together`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.requests {
            1 => f.write_str("held up 1 request")?,
            requests => write!(f, "held up {requests} requests")?,
        }
        match self.0.requests {
            0 => Ok(()),
            _ => write!(f, ", {} together", Human(self.0.total)),
        }
    }
}

impl fmt::Display for Victims {
    /// `held up 37 requests, 14.1 s together, 380 ms at most: GET /users/{id} (30); 2 wait now`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if self.requests > 0 || self.waiting == 0 && self.frozen == 0 {
            parts.push(self.in_short().to_string());
        }
        if self.requests > 0 {
            let routes = self.routes.iter();
            let routes = routes.map(|it| format!("{} ({})", it.route, it.requests));
            let routes: Vec<String> = routes.collect();
            let colon = if routes.is_empty() { "" } else { ": " };
            let (longest, routes) = (Human(self.longest), routes.join(", "));
            parts[0] += &format!(", {longest} at most{colon}{routes}");
        }
        let requests = |count, is_first: bool| match (is_first, count) {
            (false, _) => String::new(),
            (true, 1) => " request".to_owned(),
            (true, _) => " requests".to_owned(),
        };
        if self.waiting > 0 {
            let wait = if self.waiting == 1 { "waits" } else { "wait" };
            let requests = requests(self.waiting, parts.is_empty());
            parts.push(format!("{}{requests} {wait} now", self.waiting));
        }
        if self.frozen > 0 {
            let requests = requests(self.frozen, parts.is_empty());
            parts.push(format!(
                "{}{requests} waited beside a frozen driver",
                self.frozen
            ));
        }
        f.write_str(&parts.join("; "))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_counts_and_routes() {
        let victims = Victims {
            requests: 37,
            waiting: 2,
            frozen: 5,
            total: Duration::from_millis(14_100),
            longest: Duration::from_millis(380),
            routes: vec![RouteVictims {
                route: "GET /users/{id}".to_owned(),
                requests: 30,
                total: Duration::from_secs(12),
            }],
        };
        let text = "held up 37 requests, 14.1 s together, 380 ms at most: GET /users/{id} (30); \
                    2 wait now; 5 waited beside a frozen driver";
        assert_eq!(victims.to_string(), text);
        assert_eq!(Victims::default().to_string(), "held up 0 requests");
        let waiting = Victims {
            waiting: 2,
            frozen: 3,
            ..Victims::default()
        };
        let text = "2 requests wait now; 3 waited beside a frozen driver";
        assert_eq!(waiting.to_string(), text);
        let mut few = Victims {
            frozen: 1,
            ..Victims::default()
        };
        let text = "1 request waited beside a frozen driver";
        assert_eq!(few.to_string(), text);
        few.waiting = 1;
        let text = "1 request waits now; 1 waited beside a frozen driver";
        assert_eq!(few.to_string(), text);
    }
}
