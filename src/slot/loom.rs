//! The slot protocol under the model checker: every interleaving of an owner and a reader.
//!
//! *Runs on:* `RUSTFLAGS="--cfg loom" cargo test --release --lib slot::loom`.
//! *Here:* only [`Line`], whose atomics are loom's in this build.

use super::entry::{Entry, Kind};
use super::line::{Closed, Line};
use crate::clock::Nanos;
use loom::sync::Arc;
use loom::thread;

fn span(id: u64) -> Entry {
    Entry { kind: Kind::Span(0), id }
}

/// Two polls, and a reader that must never see the names of one under the epoch of the other.
#[test]
fn names_belong_to_the_poll_they_are_read_with() {
    loom::model(|| {
        let line = Arc::new(Line::new());
        let owner = {
            let line = line.clone();
            thread::spawn(move || {
                for id in [10, 20] {
                    line.push(Kind::Span(0), id);
                    line.pop();
                }
            })
        };
        for (epoch, id) in [(1, 10), (3, 20)] {
            if let Some(marks) = line.marks(epoch) {
                assert!(
                    marks.entries.is_empty() || marks.entries == [span(id)],
                    "poll {epoch} was read as {marks:?}"
                );
            }
        }
        owner.join().unwrap();
        assert_eq!(line.observe().epoch, 4);
    });
}

/// Inner names come and go within one poll: each is one that stood in that place.
#[test]
fn inner_names_are_never_invented() {
    loom::model(|| {
        let line = Arc::new(Line::new());
        let owner = {
            let line = line.clone();
            thread::spawn(move || {
                line.push(Kind::Span(0), 1);
                line.push(Kind::Span(0), 2);
                line.pop();
                line.push(Kind::Span(0), 3);
            })
        };
        if let Some(marks) = line.marks(1) {
            assert!(marks.entries.len() <= 2);
            if let Some(outer) = marks.entries.first() {
                assert_eq!(*outer, span(1));
            }
            if let Some(inner) = marks.entries.get(1) {
                assert!([span(2), span(3)].contains(inner));
            }
        }
        owner.join().unwrap();
        assert_eq!(line.marks(1).unwrap().entries, [span(1), span(3)]);
    });
}

/// A request for the end is answered, or the end stays unknown: never a wrong time.
#[test]
fn an_end_stamp_carries_its_own_epoch() {
    loom::model(|| {
        let line = Arc::new(Line::new());
        line.time_after(5);
        let owner = {
            let line = line.clone();
            thread::spawn(move || {
                for at in [100, 200] {
                    line.push(Kind::Name, 1);
                    if let Closed::Measure(epoch) = line.pop() {
                        line.stamp_end(epoch, Nanos(at));
                    }
                }
            })
        };
        let seen = line.observe();
        if seen.in_poll() {
            line.ask_for_end();
        }
        assert!(matches!(line.ended(1), None | Some(Nanos(100))));
        assert!(matches!(line.ended(3), None | Some(Nanos(200))));
        owner.join().unwrap();
    });
}

/// Who sees that `allow_blocking` was left also sees when.
#[test]
fn leaving_an_allowed_region_publishes_its_time() {
    loom::model(|| {
        let line = Arc::new(Line::new());
        line.push(Kind::Name, 1);
        line.allow();
        let owner = {
            let line = line.clone();
            thread::spawn(move || line.disallow(Nanos(42)))
        };
        let seen = line.observe();
        if !seen.allowed {
            assert_eq!(seen.allowed_until, Some(Nanos(42)));
        }
        owner.join().unwrap();
    });
}
