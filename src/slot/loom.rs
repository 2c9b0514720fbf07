//! The slot protocol under the model checker: every interleaving of an owner and a reader.
//!
//! *Runs on:* `RUSTFLAGS="--cfg loom" cargo test --release --lib slot::loom`.
//!
//! The models use [`Line`] alone, whose atomics are loom's in this build.
//!
//! Owner and reader are both spawned, the owner first: with one of them on the model's main thread,
//! loom 0.7 leaves out most schedules (of a load and a store against a load it tries one). The
//! models have been tried on mutants: each Release store of `line.rs` made Relaxed and each fence
//! left out, one at a time, fails one of them.

use super::entry::{Entry, Kind, Mark};
use super::line::{Closed, Line, Start, Step};
use crate::clock::Nanos;
use loom::sync::Arc;
use loom::thread;

const SPAN: Mark = Mark::of(Kind::Span(0));

/// Begins a mark in the steps of an owner.
fn begin(line: &Line, mark: Mark, id: u64) {
    if line.open_quickly(mark, id) == Step::Declined && line.push(mark, id) == Step::Declined {
        line.open_slowly(mark, id);
    }
}

/// Ends a mark in the steps of an owner; returns the result of [`Line::close`] if it came to that.
fn end(line: &Line) -> Option<Closed> {
    let declined = line.close_quickly() == Step::Declined && line.pop() == Step::Declined;
    declined.then(|| line.close())
}

fn span(id: u64) -> Entry {
    Entry {
        kind: Kind::Span(0),
        id,
    }
}

/// Runs an owner and a reader of one line in all interleavings.
fn model(
    prepare: impl Fn(&Line) + Sync + Send + 'static,
    owner: impl Fn(&Line) + Sync + Send + Copy + 'static,
    reader: impl Fn(&Line) + Sync + Send + Copy + 'static,
) {
    loom::model(move || {
        let line = Arc::new(Line::new());
        // The first poll goes the slow way; those that the models are about go the quick one.
        begin(&line, SPAN, 9);
        line.take_claim_request();
        end(&line);
        prepare(&line);
        let owned = line.clone();
        let owner = thread::spawn(move || owner(&owned));
        let reader = thread::spawn(move || reader(&line));
        owner.join().expect("what the owner sees is right");
        reader.join().expect("what the reader sees is right");
    });
}

/// Two polls: a reader never sees the names of one under the epoch of the other.
#[test]
fn names_belong_to_the_poll_they_are_read_with() {
    model(
        |line| {
            begin(line, SPAN, 10);
        },
        |line| {
            end(line);
            // Of another kind: a number of one kind must not be read as the other.
            begin(line, Mark::NAME, 20);
        },
        |line| {
            if let Some(marks) = line.marks(3) {
                assert!(
                    marks.entries.is_empty() || marks.entries == [span(10)],
                    "{marks:?}"
                );
            }
        },
    );
}

/// Two polls with inner marks: a reader never sees a mix of their names.
#[test]
fn inner_names_belong_to_the_poll_they_are_read_with() {
    model(
        |line| {
            begin(line, SPAN, 10);
            begin(line, SPAN, 11);
        },
        |line| {
            end(line);
            end(line);
            begin(line, SPAN, 20);
            begin(line, SPAN, 21);
        },
        |line| {
            if let Some(marks) = line.marks(3) {
                let ids: Vec<_> = marks.entries.iter().map(|entry| entry.id).collect();
                assert!([&[10][..], &[10, 11]].contains(&&ids[..]), "{ids:?}");
            }
        },
    );
}

/// A reader that sees a poll open sees its name.
#[test]
fn an_open_poll_has_its_name() {
    model(
        |_| {},
        |line| {
            begin(line, SPAN, 10);
        },
        |line| {
            let seen = line.observe();
            if seen.in_poll() {
                assert_eq!(
                    line.marks(seen.epoch).map(|marks| marks.entries),
                    Some(vec![span(10)])
                );
            }
        },
    );
}

/// An inner name that is counted is one that was stored.
#[test]
fn inner_names_are_never_invented() {
    model(
        |line| {
            begin(line, SPAN, 1);
        },
        |line| {
            begin(line, SPAN, 2);
        },
        |line| {
            let marks = line.marks(3).expect("the poll stays open");
            assert!(
                marks.entries == [span(1)] || marks.entries == [span(1), span(2)],
                "{marks:?}"
            );
        },
    );
}

/// The place of a task's spawning belongs to the poll it is read with, too.
#[test]
fn a_place_belongs_to_its_poll() {
    model(
        |line| {
            line.set_place(1);
            begin(line, Mark::TASK, 10);
        },
        |line| {
            end(line);
            line.set_place(2);
        },
        |line| {
            if let Some(marks) = line.marks(3) {
                assert_eq!(marks.place, 1);
            }
        },
    );
}

/// A start whose task has the number of its time.
fn start(at: u64) -> Start {
    Start {
        at: Nanos(at),
        task: at,
    }
}

/// A stamp is read with its own epoch or not at all, also while the next one is being written.
#[test]
fn a_stamp_carries_its_own_epoch() {
    model(
        |line| {
            begin(line, Mark::NAME, 1);
            line.stamp_start(start(100));
        },
        |line| {
            end(line);
            begin(line, Mark::NAME, 1);
            line.stamp_start(start(200));
        },
        |line| {
            assert!(line.started(3).is_none_or(|read| read == start(100)));
            assert!(line.started(5).is_none_or(|read| read == start(200)));
        },
    );
}

/// A request for the end is answered with the epoch of that poll or of a later one.
#[test]
fn a_wanted_end_is_never_an_earlier_one() {
    model(
        |line| {
            begin(line, Mark::NAME, 1);
            end(line);
        },
        |line| {
            begin(line, Mark::NAME, 1);
            if let Some(Closed::Measure { epoch, wanted, .. }) = end(line) {
                assert_eq!((epoch, wanted), (5, true));
            }
        },
        |line| {
            if line.observe().epoch == 5 {
                line.ask_for_end();
            }
        },
    );
}

/// A request may arrive at any moment: each begin and each end still does its own work.
#[test]
fn requests_do_not_lead_the_owner_astray() {
    model(
        |_| {},
        |line| {
            begin(line, SPAN, 1);
            begin(line, SPAN, 2);
            assert_eq!(end(line), None);
            assert!(line.observe().in_poll());
            end(line);
            assert_eq!(line.observe().epoch, 4);
        },
        |line| line.ask_for_end(),
    );
}

/// A reader that sees that `allow_blocking` was left also sees the time.
#[test]
fn leaving_an_allowed_region_publishes_its_time() {
    model(
        |line| line.allow(),
        |line| line.disallow(Nanos(42)),
        |line| {
            let seen = line.observe();
            if !seen.allowed {
                assert_eq!(seen.allowed_until, Some(Nanos(42)));
            }
        },
    );
}
