//! The site on a stack: rules on frames find the code that held the worker.
//!
//! *Runs on:* `stall-reporter`, and every thread that formats a report.

use super::{Frame, Origin, Site, StackSample};

/// The frames of the poll that held the worker, out to the outermost of the user's own code.
///
/// The outermost of tokio's frames is its scheduler's, or that of `block_on`. The caller of
/// `block_on` is not part of the poll. From there inwards come tokio and the standard library, and
/// then the poll.
pub(crate) fn of_the_poll(frames: &[Frame]) -> &[Frame] {
    let scheduler = frames
        .iter()
        .rposition(|frame| frame.origin == Origin::Runtime)
        .unwrap_or(frames.len());
    let is_below = |frame: &Frame| matches!(frame.origin, Origin::Runtime | Origin::Std);
    let end = frames[..scheduler]
        .iter()
        .rposition(|frame| !is_below(frame))
        .map_or(0, |outermost| outermost + 1);
    let poll = &frames[..end];
    let own = poll.iter().rposition(|frame| frame.origin == Origin::Own);
    &poll[..own.map_or(end, |outermost| outermost + 1)]
}

/// The function of the frame to which a signal handler returns. The frames before it are those of
/// the handler, and the ones after it those of the code that the signal interrupted.
pub(crate) const SIGNAL_RETURN: &str = "<signal handler called>";

/// The frames of the poll that are its own doing. A signal handler of the program that happens to
/// run on the thread, as that of a profiler, is not.
pub(crate) fn done_by_the_poll(frames: &[Frame]) -> &[Frame] {
    let poll = of_the_poll(frames);
    let is_return = |frame: &Frame| frame.function.as_deref() == Some(SIGNAL_RETURN);
    let interrupted = poll.iter().rposition(is_return);
    &poll[interrupted.map_or(0, |at| at + 1)..]
}

/// The outermost function of a dependency that the poll is in, by its name in the source.
pub(crate) fn dependency(frames: &[Frame]) -> Option<String> {
    let mut frames = of_the_poll(frames).iter().rev();
    frames.find_map(|frame| {
        let is_dependency = frame.origin == Origin::Dependency;
        is_dependency.then(|| frame.written_name()).flatten()
    })
}

/// The innermost frame of own code in the poll, by its name in the source.
pub(crate) fn site(frames: &[Frame]) -> Option<Site> {
    innermost_own(of_the_poll(frames))
}

/// The innermost frame of own code, by its name in the source. Code made by a derive is passed over
/// if there is other own code.
pub(crate) fn innermost_own(frames: &[Frame]) -> Option<Site> {
    let mut own = frames.iter().filter(|frame| frame.origin == Origin::Own);
    let is_written = |frame: &&Frame| {
        // Derives put their code into a constant without a name.
        let function = frame.function.as_deref();
        function.is_some_and(|function| !function.contains("::_::"))
    };
    let innermost = own.clone().find(is_written);
    let frame = innermost.or_else(|| own.next())?;
    Some(Site {
        function: frame.written_name()?,
        file: frame.file.clone(),
        line: frame.line,
    })
}

/// The index of the representative stack: the earliest at the site found most often. Computing
/// stalls rarely show the same stack twice, but the same site.
///
/// A stall that is mostly `asleep` is shown by a stack of its sleep, and another one by a stack
/// besides: a poll that computes before it sleeps may be met in both.
pub(crate) fn telling(stacks: &[StackSample], asleep: bool) -> Option<usize> {
    let is_fitting = |stack: &&StackSample| stack.asleep == asleep;
    let has_fitting = stacks.iter().any(|stack| is_fitting(&stack));
    let is_candidate = |stack: &&StackSample| !has_fitting || is_fitting(stack);
    let sites: Vec<_> = stacks.iter().map(|stack| site(&stack.frames)).collect();
    let found = |site: &Option<Site>| -> u32 {
        let same = stacks.iter().zip(&sites);
        same.filter(|(stack, other)| is_candidate(stack) && *other == site)
            .map(|(stack, _)| stack.count)
            .sum()
    };
    let candidates = stacks.iter().zip(&sites).enumerate().rev();
    candidates
        .filter(|(_, (stack, _))| is_candidate(stack))
        .max_by_key(|(_, (_, site))| (site.is_some(), found(site)))
        .map(|(index, _)| index)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn frame(function: &str, origin: char) -> Frame {
        Frame::of(
            function,
            match origin {
                'o' => Origin::Own,
                'd' => Origin::Dependency,
                's' => Origin::Std,
                'r' => Origin::Runtime,
                _ => Origin::System,
            },
        )
    }

    fn stack(functions: &[(&str, char)]) -> Vec<Frame> {
        let frames = functions.iter();
        frames.map(|(name, origin)| frame(name, *origin)).collect()
    }

    #[test]
    fn the_handler_of_a_signal_is_not_done_by_the_poll() {
        let poll = [("serde_json::ser", 'd'), ("app::run", 'o'), ("tokio", 'r')];
        let handler = [
            ("std::sys::once::Once::call", 's'),
            ("pprof::profiler::perf_signal_handler", 'd'),
            (SIGNAL_RETURN, 'l'),
        ];
        let interrupted = stack(&[&handler[..], &poll].concat());
        assert_eq!(done_by_the_poll(&interrupted), &interrupted[3..5]);
        assert_eq!(of_the_poll(&interrupted), &interrupted[..5]);
        let alone = stack(&poll);
        assert_eq!(done_by_the_poll(&alone), &alone[..2]);
    }

    #[test]
    fn without_own_code_the_outermost_function_of_a_dependency_is_told() {
        let own_main = ("app::main", 'o');
        let frames = [
            ("deflate", 'd'),
            ("tower_http::compression::body::poll::{closure#0}", 'd'),
            ("core::future::poll", 's'),
            ("tokio::runtime::task::poll", 'r'),
            own_main,
        ];
        let told = dependency(&stack(&frames));
        assert_eq!(told.as_deref(), Some("tower_http::compression::body::poll"));
        assert_eq!(site(&stack(&frames)), None, "`main` is not in the poll");
        let with_own = [frames[0], ("app::handler", 'o'), frames[3], own_main];
        let site = site(&stack(&with_own)).expect("own code");
        assert_eq!(site.function, "app::handler");
        assert_eq!(dependency(&stack(&[frames[2], frames[3], own_main])), None);
    }

    #[test]
    fn the_poll_ends_where_the_scheduler_begins() {
        let kept = |origins: &str| {
            let frames = origins.chars().map(|origin| frame("f", origin));
            let frames: Vec<Frame> = frames.collect();
            origins[..of_the_poll(&frames).len()].to_owned()
        };
        assert_eq!(kept("lssodoodrsrrssl"), "lssodoo", "on a worker");
        assert_eq!(kept("lssodrsrrosl"), "lsso", "below `block_on` in `main`");
        assert_eq!(kept("lsrrsosrrsrr"), "lsrrso", "a runtime inside the poll");
        assert_eq!(kept("lsddrr"), "lsdd", "nothing of their own");
        assert_eq!(kept("lssodl"), "lsso", "a scheduler without names");
        assert_eq!(kept("lrrl"), "l", "between two polls");
    }
    #[test]
    fn a_sleep_is_shown_by_a_stack_of_it() {
        let sample = |function: &str, asleep, count| StackSample {
            after: std::time::Duration::ZERO,
            count,
            frames: stack(&[(function, 'o')]),
            certain_frames: 1,
            complete: true,
            asleep,
        };
        let both = [
            sample("app::computes", false, 3),
            sample("app::sleeps", true, 1),
        ];
        assert_eq!(telling(&both, true), Some(1));
        assert_eq!(telling(&both, false), Some(0));
        // There is no other.
        assert_eq!(telling(&both[..1], true), Some(0));
        assert_eq!(telling(&[], true), None);
        // A stack of a library's sleep, and not of own code besides.
        let mut library = sample("library::waits", true, 1);
        library.frames[0].origin = Origin::Dependency;
        assert_eq!(telling(&[both[0].clone(), library], true), Some(1));
    }
}
