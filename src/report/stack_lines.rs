//! The lines of a stack in a report: the calls of own code, and one line for all others.
//!
//! *Runs on:* every thread that formats a report.

use super::frame::{Frame, Origin, StackSample};
use super::site::of_the_poll;
use super::text::Human;
use std::fmt;

/// The text of one stack, and the number of different stacks. Only frames of the user's own code
/// are shown, and the call that it made; the alternate form shows all.
pub(super) struct StackLines<'a>(pub(super) &'a StackSample, pub(super) usize);

/// The most frames shown of a stack without own code.
const WITHOUT_OWN: usize = 6;

impl fmt::Display for StackLines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StackLines(sample, stacks) = self;
        let lines = match f.alternate() {
            true => sample.frames.iter().map(ToString::to_string).collect(),
            false => short_lines(&sample.frames),
        };
        for (index, line) in lines.iter().enumerate() {
            match index {
                0 => write!(f, "\n  stack     {line}")?,
                _ => write!(f, "\n            {line}")?,
            }
        }
        let after = Human(sample.after);
        write!(f, "\n            taken at +{after}")?;
        match (sample.count, stacks) {
            (1, 1) => Ok(()),
            (count, 1) => write!(f, ", {count} times the same"),
            (1, stacks) => write!(f, ", one of {stacks} different stacks"),
            (count, stacks) => write!(f, ", {count} times; one of {stacks} different stacks"),
        }
    }
}

/// The lines for these frames: own calls, and one line for the others. An `async fn` that
/// `#[instrument]` wraps is on the stack twice: only the inner one has the line of the call.
fn short_lines(frames: &[Frame]) -> Vec<String> {
    let own = of_the_poll(frames).iter().position(is_own);
    let is_shown = |index: usize| match own {
        Some(own) => index + 1 == own || index >= own && is_own(&frames[index]),
        None => index < WITHOUT_OWN,
    };
    let mut lines = Vec::new();
    let mut others: Vec<&Frame> = Vec::new();
    let end = of_the_poll(frames).len();
    let mut inner: Option<&Frame> = None;
    for (index, frame) in frames.iter().enumerate() {
        if !is_shown(index) || index >= end && own.is_some() {
            others.push(frame);
            continue;
        }
        if !inner.is_some_and(|inner| is_body_of(inner, frame)) {
            lines.push(frame.to_string());
        }
        inner = Some(frame);
    }
    match others.as_slice() {
        [] => {}
        [only] => lines.push(only.to_string()),
        others => lines.push(in_one_line(others)),
    }
    lines
}

/// Writes `… 23 frames of std, tokio`.
fn in_one_line(frames: &[&Frame]) -> String {
    let mut owners: Vec<&str> = Vec::new();
    for frame in frames {
        let owner = match frame.origin {
            Origin::Own => "your code outside of the poll",
            Origin::Dependency => "dependencies",
            Origin::Std => "std",
            Origin::Runtime => "tokio",
            Origin::Detector => "tokio-stall",
            Origin::System => "the system",
        };
        if !owners.contains(&owner) {
            owners.push(owner);
        }
    }
    format!("… {} frames of {}", frames.len(), owners.join(", "))
}

/// The lines of a stack as a report has them: own calls, and one line for the others.
#[cfg(feature = "outside")]
pub fn shown_lines(frames: &[Frame]) -> Vec<String> {
    short_lines(frames)
}

fn is_own(frame: &Frame) -> bool {
    frame.origin == Origin::Own
}

/// Whether it is a closure or an `async` block that is written in the other's function.
fn is_body_of(inner: &Frame, outer: &Frame) -> bool {
    let names = inner.function.as_deref().zip(outer.function.as_deref());
    let is_inside = |(inner, outer): (&str, &str)| {
        let inside = inner.strip_prefix(outer);
        inside.is_some_and(|inside| inside.starts_with("::{"))
    };
    names.is_some_and(is_inside) && inner.written_name() == outer.written_name()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::stall::example as report;
    use super::*;
    use crate::report::StallReport;
    use std::time::Duration;

    #[test]
    fn a_stack_is_short_or_whole() {
        let mut frames = vec![
            Frame::of("memcpy", Origin::System),
            Frame::of("serde_json::to_string", Origin::Dependency),
            Frame::of("app::handler", Origin::Own),
            Frame::of("tower::call", Origin::Dependency),
            Frame::of("app::middleware", Origin::Own),
            Frame::of("core::poll", Origin::Std),
            Frame::of("tokio::runtime::task::poll", Origin::Runtime),
            Frame::of("app::main", Origin::Own),
        ];
        let short = [
            "serde_json::to_string",
            "app::handler",
            "app::middleware",
            "… 5 frames of the system, dependencies, std, tokio, your code outside of the poll",
        ];
        assert_eq!(short_lines(&frames), short);
        let report = StallReport {
            stacks: vec![StackSample {
                after: Duration::ZERO,
                count: 1,
                certain_frames: frames.len(),
                frames: frames.clone(),
                complete: true,
                asleep: false,
            }],
            representative_stack: Some(0),
            ..report()
        };
        let (short, whole) = (report.to_string(), format!("{report:#}"));
        for frame in &frames {
            let name = frame.function.as_deref().unwrap();
            assert!(whole.contains(name), "{whole}");
        }
        assert!(!whole.contains('…') && !short.contains("memcpy"));
        // Without own code there is no better choice than the innermost calls.
        frames.retain(|frame| frame.origin != Origin::Own);
        frames.extend(vec![Frame::of("tokio::runtime::run", Origin::Runtime); 3]);
        let lines = short_lines(&frames);
        assert_eq!((lines.len(), lines[0].as_str()), (7, "memcpy"));
        assert_eq!(lines[6], "… 2 frames of tokio");
    }

    #[test]
    fn a_wrapped_function_is_told_once() {
        let names = [
            "std::thread::sleep",
            "app::charge::{closure#0}::{closure#0}",
            "<tracing::instrument::Instrumented as core::future::Future>::poll",
            "app::charge::{closure#0}",
            "app::walk",
            "app::walk",
        ];
        let origin = |name: &str| match name.split_once("app::") {
            Some(("", _)) => Origin::Own,
            _ => Origin::Dependency,
        };
        let frames = names.map(|name| Frame::of(name, origin(name)));
        let lines = short_lines(&frames);
        // A function that calls itself is on the stack as often as it was called.
        let told = [
            "std::thread::sleep",
            "app::charge",
            "app::walk",
            "app::walk",
        ];
        assert_eq!(&lines[..4], told);
    }
}
