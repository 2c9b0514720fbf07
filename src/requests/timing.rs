//! The header `Server-Timing`: the parts of a request's time, for the browser's own tools.
//!
//! *Runs on:* the thread that polls the request, once for each response, if it is asked for.

use super::time::RequestTime;
use std::time::Duration;

/// The name of the header.
pub(super) const NAME: http::HeaderName = http::HeaderName::from_static("server-timing");

/// The parts of the time up to the response, in milliseconds, as `own;dur=18.20, ready;dur=380.91,
/// stall;dur=380.02, wait;dur=14.10`. The part `stall` is a part of `ready`.
pub(super) fn header(time: &RequestTime, lost: Duration) -> String {
    let millis = |part: Duration| part.as_secs_f64() * 1e3;
    format!(
        "own;dur={:.2}, ready;dur={:.2}, stall;dur={:.2}, wait;dur={:.2}",
        millis(time.own),
        millis(time.ready),
        millis(lost.min(time.ready)),
        millis(time.waiting),
    )
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::clock::Nanos;

    #[test]
    fn parts_are_in_milliseconds() {
        let at = |millis: u64| Nanos(1 + millis * 1_000_000);
        let mut time = RequestTime::new(at(0));
        time.poll_begins(at(380), Some(at(0)));
        time.poll_ends(at(398));
        let text = header(&time, Duration::from_micros(379_500));
        let expected = "own;dur=18.00, ready;dur=380.00, stall;dur=379.50, wait;dur=0.00";
        assert_eq!(text, expected);
        assert!(http::HeaderValue::from_str(&text).is_ok());
    }
}
