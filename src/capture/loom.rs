//! The mailbox under the model checker: every interleaving of a requester and the handlers.
//!
//! *Runs on:* `RUSTFLAGS="--cfg loom" cargo test --release --lib capture::loom`.
//!
//! The model is [`Mailbox`] alone, whose atomics and cell are loom's in this build.

use super::mailbox::Mailbox;
use loom::sync::Arc;
use loom::thread;

const THIS: u32 = 7;
const OTHER: u32 = 9;

/// Two words, so that a torn letter shows.
type Letter = [u64; 2];

#[test]
fn a_letter_is_read_whole_or_not_at_all() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::<Letter>::new([0; 2]));
        let round = mailbox.request(THIS, |letter| *letter = [1, 1]).unwrap();
        let handler = thread::spawn({
            let mailbox = mailbox.clone();
            move || {
                mailbox.answer(THIS, |letter| {
                    assert_eq!(*letter, [1, 1], "the question is whole");
                    *letter = [2, 2];
                })
            }
        });
        let reader = thread::spawn({
            let mailbox = mailbox.clone();
            move || {
                let seen = mailbox.read(round, |letter| *letter);
                assert!(seen.is_none() || seen == Some([2, 2]));
                mailbox.withdraw(round);
            }
        });
        handler.join().unwrap();
        reader.join().unwrap();
        assert!(mailbox.request(THIS, |_| ()).is_some(), "free in the end");
    });
}

#[test]
fn one_thread_at_a_time_has_the_letter_also_when_it_is_used_again() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::<Letter>::new([0; 2]));
        let late = thread::spawn({
            let mailbox = mailbox.clone();
            // Loom's cell checks that no two threads reach the letter at once.
            move || mailbox.answer(THIS, |letter| *letter = [3, 3])
        });
        let requester = thread::spawn({
            let mailbox = mailbox.clone();
            move || {
                let first = mailbox.request(THIS, |letter| *letter = [1, 1]).unwrap();
                mailbox.withdraw(first);
                let Some(second) = mailbox.request(OTHER, |letter| *letter = [2, 2]) else {
                    // The first one is still being written.
                    return;
                };
                assert_eq!(
                    mailbox.read(second, |letter| *letter),
                    None,
                    "a late answer is to another question"
                );
                mailbox.withdraw(second);
            }
        });
        late.join().unwrap();
        requester.join().unwrap();
        assert!(mailbox.request(THIS, |_| ()).is_some(), "free in the end");
    });
}

#[test]
fn two_requesters_do_not_share_a_mailbox() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::<Letter>::new([0; 2]));
        let ask = |tid: u32| {
            let mailbox = mailbox.clone();
            move || {
                let number = u64::from(tid);
                let round = mailbox.request(tid, |letter| *letter = [number; 2])?;
                mailbox.answer(tid, |letter| assert_eq!(*letter, [number; 2]));
                let seen = mailbox.read(round, |letter| *letter);
                mailbox.withdraw(round);
                seen
            }
        };
        let this = thread::spawn(ask(THIS));
        let other = thread::spawn(ask(OTHER));
        let seen = [this.join().unwrap(), other.join().unwrap()];
        assert!(seen.iter().any(Option::is_some), "one of them gets it");
    });
}

#[test]
fn a_letter_that_its_requester_fills_is_never_the_handler_s() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::<Letter>::new([0; 2]));
        let first = mailbox.request(THIS, |letter| *letter = [1, 1]).unwrap();
        let late = thread::spawn({
            let mailbox = mailbox.clone();
            move || mailbox.answer(THIS, |letter| *letter = [3, 3])
        });
        mailbox.withdraw(first);
        let write = |letter: &mut Letter| {
            *letter = [2, 2];
            true
        };
        // None while the handler still writes the first one.
        if let Some(round) = mailbox.fill(write) {
            assert_eq!(mailbox.read(round, |letter| *letter), Some([2, 2]));
            mailbox.withdraw(round);
        }
        late.join().unwrap();
        assert!(mailbox.fill(write).is_some(), "free in the end");
    });
}
