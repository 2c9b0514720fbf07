//! Where on a stack the code is that held the worker: rules on frames.
//!
//! *Runs on:* every thread: arithmetic on plain data.

use super::{Frame, Origin, Site, StackSample};

/// The frames of the poll that held the worker, as far out as the user's own code goes.
///
/// The outermost of tokio's frames is its scheduler's, or that of `block_on`, below which the caller of
/// `block_on` is not the poll's. From there inwards come tokio and the standard library, and then the poll.
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

/// The innermost frame of own code, by the name that was written. What a derive has written is passed
/// over, if there is more.
pub(crate) fn site(frames: &[Frame]) -> Option<Site> {
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

/// Which stack tells the site: the earliest at the site found most often. Computing stalls rarely show the same
/// stack twice, but the same site.
pub(crate) fn telling(stacks: &[StackSample]) -> Option<usize> {
    let sites: Vec<_> = stacks.iter().map(|stack| site(&stack.frames)).collect();
    let found = |site: &Option<Site>| -> u32 {
        let same = stacks.iter().zip(&sites);
        same.filter(|(_, other)| *other == site)
            .map(|(stack, _)| stack.count)
            .sum()
    };
    let by_site = sites.iter().enumerate().rev();
    by_site
        .max_by_key(|(_, site)| (site.is_some(), found(site)))
        .map(|(index, _)| index)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_poll_ends_where_the_scheduler_begins() {
        let kept = |origins: &str| {
            let frames: Vec<Frame> = origins
                .chars()
                .map(|origin| Frame {
                    function: Some("f".to_owned()),
                    file: None,
                    line: None,
                    module: None,
                    offset: 0,
                    build_id: None,
                    origin: match origin {
                        'o' => Origin::Own,
                        'd' => Origin::Dependency,
                        's' => Origin::Std,
                        'r' => Origin::Runtime,
                        _ => Origin::System,
                    },
                    inlined: false,
                })
                .collect();
            origins[..of_the_poll(&frames).len()].to_owned()
        };
        assert_eq!(kept("lssodoodrsrrssl"), "lssodoo", "on a worker");
        assert_eq!(kept("lssodrsrrosl"), "lsso", "below `block_on` in `main`");
        assert_eq!(kept("lsrrsosrrsrr"), "lsrrso", "a runtime inside the poll");
        assert_eq!(kept("lsddrr"), "lsdd", "nothing of their own");
        assert_eq!(kept("lssodl"), "lsso", "a scheduler without names");
        assert_eq!(kept("lrrl"), "l", "between two polls");
    }
}
