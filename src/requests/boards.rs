//! The boards of all watched runtimes, by tokio's number for the runtime.
//!
//! *Runs on:* the thread that starts or ends a watch; threads that call a service.
//!
//! A thread remembers the board of its runtime until the list changes, so a request takes no lock.

use super::board::Board;
use crate::slot;
use parking_lot::Mutex;
use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use tokio::runtime::Handle;

/// The boards, by tokio's number for the runtime. A board goes with the watch of its runtime, or
/// with the last request that began under it.
static BOARDS: Mutex<Vec<(u64, Weak<Board>)>> = Mutex::new(Vec::new());
/// The number of changes of the list.
static VERSION: AtomicU64 = AtomicU64::new(1);

/// The board that a thread has used last.
struct Last {
    version: u64,
    runtime: u64,
    board: Weak<Board>,
}

thread_local! {
    static LAST: RefCell<Last> = const {
        RefCell::new(Last { version: 0, runtime: 0, board: Weak::new() })
    };
}

/// Adds the board of a runtime that is watched from now on. It replaces that of an earlier watch,
/// which requests may still have.
pub(crate) fn add(board: &Arc<Board>) {
    let mut boards = BOARDS.lock();
    boards.retain(|(runtime, known)| *runtime != board.runtime && known.strong_count() > 0);
    boards.push((board.runtime, Arc::downgrade(board)));
    // Release: pairs with the Acquire in `here`.
    VERSION.fetch_add(1, Ordering::Release);
}

/// The board of the runtime that the calling thread is in. `None` outside of a runtime, and in one
/// that is not watched.
///
/// # Cost
///
/// A clone of the runtime's handle, and one of the board. A lock after a watch has begun.
pub(super) fn here() -> Option<Arc<Board>> {
    let runtime = slot::raw_id(&Handle::try_current().ok()?.id());
    // Acquire: pairs with the Release in `add`.
    let version = VERSION.load(Ordering::Acquire);
    let board = LAST.try_with(|last| {
        let mut last = last.borrow_mut();
        if (last.version, last.runtime) != (version, runtime) {
            let boards = BOARDS.lock();
            let board = boards.iter().find(|(known, _)| *known == runtime);
            *last = Last {
                version,
                runtime,
                board: board.map_or(Weak::new(), |(_, board)| board.clone()),
            };
        }
        last.board.upgrade()
    });
    board.ok().flatten()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_board_is_found_while_its_runtime_is_watched() {
        let tokio = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        let found = || tokio.block_on(async { here() });
        assert!(found().is_none());
        let board = Arc::new(Board::for_tests(slot::raw_id(&tokio.handle().id())));
        add(&board);
        assert!(found().is_some_and(|found| Arc::ptr_eq(&found, &board)));
        // A request of the first watch goes on during the second one.
        let second = Arc::new(Board::for_tests(board.runtime));
        add(&second);
        assert!(found().is_some_and(|found| Arc::ptr_eq(&found, &second)));
        drop(board);
        assert!(found().is_some());
        drop(second);
        assert!(found().is_none());
        assert!(here().is_none(), "there is no runtime here");
    }
}
