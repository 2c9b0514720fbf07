//! A file of known sites: they may block for now, and new ones may not.
//!
//! *Runs on:* the threads of tests.

use crate::report::{Cause, KnownStalls, Site};
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;

/// Reads a baseline: a file of sites that are known to block, and pass.
///
/// ```toml
/// [[known]]
/// site = "app::handlers::get_user"
/// cause = "blocked/sleep"            # may be left out: then any cause
/// reason = "is waiting for #123"     # may be left out
/// ```
///
/// `site` is the function, as failures show it. A failure ends with the entry that would let it
/// pass. A relative path is relative to the package's root, since cargo runs tests there.
///
/// The drop of the last clone lists on standard error the known sites that have blocked, and those
/// that have not and can be removed.
///
/// # Panics
///
/// If the file cannot be read, or has text in it that is no entry.
///
/// # Examples
///
/// ```no_run
/// # async fn handler() {}
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use tokio_stall::testing;
///
/// let known = testing::baseline("stalls.toml");
/// testing::assert_never_blocks(handler()).known(&known).await;
/// # }
/// ```
///
/// ```should_panic
/// tokio_stall::testing::baseline("no_such_file.toml");
/// ```
#[track_caller]
pub fn baseline(path: impl AsRef<Path>) -> Baseline {
    match KnownStalls::read(path.as_ref()) {
        Ok(known) => Baseline(Arc::new(BaselineFile(Mutex::new(known)))),
        Err(error) => panic!("{error}"),
    }
}

/// Sites that are known to block; made by [`baseline`]. Clones share their counts.
#[derive(Clone, Debug)]
pub struct Baseline(Arc<BaselineFile>);

/// A baseline file and the counts of its entries.
#[derive(Debug)]
struct BaselineFile(Mutex<KnownStalls>);

impl Baseline {
    /// Whether this site is known to block for this cause. A known one is counted. A breach of a
    /// budget is known only by an entry that names it: its line is one of many.
    pub(super) fn knows(&self, site: Option<&Site>, cause: Cause) -> bool {
        let mut file = self.0.0.lock();
        match cause {
            Cause::Cpu => file.names(site, cause),
            _ => file.knows(site, cause),
        }
    }

    /// The known sites that have blocked so far, each with a count.
    pub fn met(&self) -> Vec<(String, u64)> {
        self.0.0.lock().met()
    }

    /// The known sites that have not blocked so far. Their entries can be removed.
    pub fn vanished(&self) -> Vec<String> {
        self.0.0.lock().vanished()
    }

    /// The text of an entry for this site; `None` if the file's format cannot express its name.
    pub(super) fn entry(site: &Site, cause: Cause) -> Option<String> {
        KnownStalls::entry(site, cause)
    }
}

impl Drop for BaselineFile {
    fn drop(&mut self) {
        let text = self.0.get_mut().to_string();
        if !text.is_empty() {
            eprintln!("{text}");
        }
    }
}
