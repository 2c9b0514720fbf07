//! Made-up reports, for the tests of a program's own callbacks.
//!
//! *Runs on:* the threads of tests.
//!
//! The parts of each report fit together, as in a real one.

#[cfg(feature = "tower")]
use super::Cause;
use super::{
    Frame, Origin, Phase, PoolWaitReport, RouteVictims, Site, StackSample, StallReport, TimeSplit,
    Victims,
};
#[cfg(feature = "tower")]
use super::{LostTo, RequestReport};
use std::time::{Duration, SystemTime};

const FILE: &str = "src/handlers.rs";
const LINE: u32 = 42;

impl StallReport {
    /// A report of a made-up stall that goes on: a handler sleeps for 127 ms in
    /// `std::thread::sleep`. For tests of a callback that is given to
    /// [`on_stall`](crate::Builder::on_stall).
    ///
    /// A test sets the fields that the callback reads. Parts of a report have no constructors: a
    /// test changes or clones those that are here.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_stall::{Cause, StallReport};
    ///
    /// /// Whether somebody is called at night.
    /// fn is_alarming(report: &StallReport) -> bool {
    ///     report.duration >= Duration::from_secs(1) && !report.cause.is_host()
    /// }
    ///
    /// let mut report = StallReport::example();
    /// assert!(!is_alarming(&report));
    /// report.duration = Duration::from_secs(5);
    /// assert!(is_alarming(&report));
    /// report.cause = Cause::Throttled;
    /// assert!(!is_alarming(&report));
    /// ```
    pub fn example() -> StallReport {
        let duration = Duration::from_millis(127);
        let time = TimeSplit {
            cpu: Duration::from_millis(1),
            asleep: Duration::from_millis(126),
            ..TimeSplit::default()
        };
        StallReport {
            spawned_at: None,
            duration,
            time,
            driver_frozen: Some(Duration::ZERO),
            victims: Some(victims()),
            site: Some(site("app::handlers::get_user")),
            stacks: vec![stack("app::handlers::get_user::{closure#0}", SLEEP)],
            representative_stack: Some(0),
            advice: Some("Sleep with `tokio::time::sleep(…).await`.".to_owned()),
            seen_here: 3,
            lost_here: duration * 3,
            ..super::example()
        }
    }
}

impl PoolWaitReport {
    /// A report of a made-up wait that goes on: closures that read files hold the whole blocking
    /// pool. For tests of a callback that is given to
    /// [`on_pool_wait`](crate::Builder::on_pool_wait).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_stall::PoolWaitReport;
    ///
    /// let mut report = PoolWaitReport::example();
    /// report.waited = Duration::from_secs(3);
    /// let text = report.to_string();
    /// assert!(text.contains("has waited for 3.00 s so far"), "{text}");
    /// ```
    pub fn example() -> PoolWaitReport {
        PoolWaitReport {
            id: 18,
            phase: Phase::Ongoing,
            runtime: "api".to_owned(),
            started_at: SystemTime::UNIX_EPOCH,
            waited: Duration::from_millis(250),
            stacks: vec![stack("app::handlers::read_all::{closure#0}", READ)],
        }
    }
}

#[cfg(feature = "tower")]
impl RequestReport {
    /// A report of a made-up request: it took 250 ms, and a stall held it up for most of them. For
    /// tests of a callback that is given to
    /// [`on_slow_request`](crate::Builder::on_slow_request).
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_stall::tower::RequestReport;
    ///
    /// /// Whether others are to blame.
    /// fn is_victim(request: &RequestReport) -> bool {
    ///     let lost: std::time::Duration = request.lost.iter().map(|stall| stall.lost).sum();
    ///     lost * 2 > request.total
    /// }
    ///
    /// let mut request = RequestReport::example();
    /// assert!(is_victim(&request));
    /// request.lost.clear();
    /// assert!(!is_victim(&request));
    /// ```
    pub fn example() -> RequestReport {
        let ms = Duration::from_millis;
        RequestReport {
            runtime: "api".to_owned(),
            route: "GET /users/{id}".to_owned(),
            started_at: SystemTime::UNIX_EPOCH,
            total: ms(250),
            own: ms(10),
            longest_poll: ms(6),
            ready: ms(200),
            waiting: ms(40),
            driver_frozen: Duration::ZERO,
            own_stall: None,
            lost: vec![LostTo {
                stall: 17,
                lost: ms(199),
                span: Some("POST /rebuild".to_owned()),
                site: Some(site("app::cache::rebuild")),
                cause: Some(Cause::Cpu),
            }],
        }
    }
}

const SLEEP: (&str, Origin) = ("std::thread::functions::sleep", Origin::Std);
const READ: (&str, Origin) = ("std::fs::read", Origin::Std);

/// Own code calls `innermost`.
fn stack(own: &str, innermost: (&str, Origin)) -> StackSample {
    let frames = vec![
        frame(innermost.0, innermost.1, None),
        frame(own, Origin::Own, Some((FILE, LINE))),
    ];
    StackSample {
        after: Duration::from_millis(10),
        count: 1,
        certain_frames: frames.len(),
        frames,
        complete: true,
        asleep: false,
    }
}

fn frame(function: &str, origin: Origin, place: Option<(&str, u32)>) -> Frame {
    Frame {
        function: Some(function.to_owned()),
        file: place.map(|(file, _)| file.to_owned()),
        line: place.map(|(_, line)| line),
        module: Some("app".to_owned()),
        offset: 0x4711,
        build_id: None,
        origin,
        inlined: false,
    }
}

fn site(function: &str) -> Site {
    Site {
        function: function.to_owned(),
        file: Some(FILE.to_owned()),
        line: Some(LINE),
    }
}

fn victims() -> Victims {
    let ms = Duration::from_millis;
    Victims {
        requests: 7,
        waiting: 2,
        frozen: 0,
        total: ms(600),
        longest: ms(120),
        routes: vec![RouteVictims {
            route: "GET /users/{id}".to_owned(),
            requests: 7,
            total: ms(600),
        }],
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::report::site as of_stack;

    #[test]
    fn the_parts_of_a_stall_fit_together() {
        let report = StallReport::example();
        assert_eq!(report.time.total(), report.duration);
        assert_eq!(
            of_stack::telling(&report.stacks, false),
            report.representative_stack
        );
        assert_eq!(of_stack::site(&report.stacks[0].frames), report.site);
        let headline = "worker 1 of \"api\" blocked for 127 ms so far: asleep in clock_nanosleep, \
                        app::handlers::get_user (src/handlers.rs:42), in request > get_user";
        assert!(
            report.headline().to_string().starts_with(headline),
            "{}",
            report.headline()
        );
    }

    #[test]
    fn the_parts_of_a_wait_fit_together() {
        let report = PoolWaitReport::example();
        let text = "the blocking pool of \"api\" is exhausted: a closure has waited for 250 ms so \
                    far; held in app::handlers::read_all (src/handlers.rs:42)";
        assert_eq!(report.to_string(), text);
    }

    #[cfg(feature = "tower")]
    #[test]
    fn the_parts_of_a_request_fit_together() {
        let request = RequestReport::example();
        let parts = request.own + request.ready + request.waiting;
        assert_eq!(parts, request.total);
        assert!(request.lost[0].lost <= request.ready);
        assert!(request.longest_poll <= request.own);
    }
}
