//! Blocking that its author allows, with a reason: counted, never reported.
//!
//! *Runs on:* any thread, around the code in question.
//! *Must not:* do more than two clock reads and, at the end, one short lock around a table of
//! reasons.

use crate::clock::{self, Nanos};
use crate::slot::{self, Slot};
use parking_lot::Mutex;
#[cfg(feature = "testing")]
use std::any::Any;
#[cfg(feature = "testing")]
use std::sync::OnceLock;
use std::time::Duration;

/// Runs `f`, which may block its worker for the given reason.
///
/// While `f` runs, the detector neither reports the poll around it nor counts its time towards a
/// stall. It still watches the poll's code before and after `f`. The time is kept by reason, see
/// [`Status::allowed`](crate::Status::allowed). Regions nest.
///
/// # Panics
///
/// Only if `f` does. The region ends all the same.
///
/// # Cost
///
/// About 50 ns: two clock reads and a short lock. The first use of a reason may allocate.
///
/// # Examples
///
/// ```
/// use tokio_stall::allow_blocking;
///
/// let hosts = allow_blocking("reads its hosts file once, before it serves", || {
///     std::fs::read_to_string("/etc/hosts")
/// });
/// # drop(hosts);
/// ```
pub fn allow_blocking<R>(reason: &'static str, f: impl FnOnce() -> R) -> R {
    let _region = Region::enter(reason);
    f()
}

/// The blocking that was [allowed](allow_blocking) for one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct AllowedBlocking {
    /// The reason given to [`allow_blocking`].
    pub reason: &'static str,
    /// How many regions have ended with this reason.
    pub count: u64,
    /// The time spent in these regions, on all threads together; nested regions count both.
    pub total: Duration,
}

static ALLOWED: Mutex<Vec<AllowedBlocking>> = Mutex::new(Vec::new());

/// All reasons given so far in this process, in the order of their first use.
pub(crate) fn allowed() -> Vec<AllowedBlocking> {
    ALLOWED.lock().clone()
}

/// Takes a region off a measurement until the result is dropped; `None` where nothing is measured.
#[cfg(feature = "testing")]
type Unmeasured = fn() -> Option<Box<dyn Any>>;

/// Called as a region begins; the result is dropped as it ends. The first measurement of a test
/// sets it.
#[cfg(feature = "testing")]
pub(crate) static UNMEASURED: OnceLock<Unmeasured> = OnceLock::new();

/// The region; it ends also when the code inside panics.
struct Region {
    slot: Option<&'static Slot>,
    reason: &'static str,
    entered: Nanos,
    /// Takes the region's own cost off a measurement of its thread.
    #[cfg(feature = "testing")]
    _unmeasured: Option<Box<dyn Any>>,
}

impl Region {
    fn enter(reason: &'static str) -> Region {
        let slot = slot::mine();
        if let Some(slot) = slot {
            slot.line.allow();
        }
        Region {
            slot,
            reason,
            entered: clock::now(),
            #[cfg(feature = "testing")]
            _unmeasured: UNMEASURED.get().and_then(|begin| begin()),
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let now = clock::now();
        if let Some(slot) = self.slot {
            slot.line.disallow(now);
        }
        let spent = now.since(self.entered);
        let mut allowed = ALLOWED.lock();
        match allowed.iter_mut().find(|known| known.reason == self.reason) {
            Some(known) => {
                known.count += 1;
                known.total += spent;
            }
            None => allowed.push(AllowedBlocking {
                reason: self.reason,
                count: 1,
                total: spent,
            }),
        }
    }
}
