//! Against models that anybody can check, with whatever a worker may do.

use super::*;
use proptest::prelude::*;

/// What a poll was made of, in milliseconds.
#[derive(Clone, Copy, Debug)]
enum Piece {
    Compute(u64),
    Sleep(u64),
    Starve(u64),
}

fn piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        (1..8u64).prop_map(Piece::Compute),
        (1..8u64).prop_map(Piece::Sleep),
        (1..30u64).prop_map(Piece::Starve),
    ]
}

proptest! {
    /// Against the obvious model: a timed poll is a stall if its own time, without the time it wanted a
    /// CPU, reaches the threshold. Seen at every millisecond the detector is never early, and late by at
    /// most a tick for each wait, whose end it cannot place within one.
    #[test]
    fn a_poll_is_a_stall_if_its_own_time_reaches_the_threshold(pieces in prop::collection::vec(piece(), 1..12)) {
        let mut world = World::parked().wake();
        world.compute(ms(1));
        world.begin_poll(Some(at(1)));
        let (mut own, mut waits, mut age) = (0, 0, 0);
        let mut reported = false;
        for piece in pieces {
            let (length, of_its_own): (u64, bool) = match piece {
                Piece::Compute(length) | Piece::Sleep(length) => (length, true),
                Piece::Starve(length) => (length, false),
            };
            for _ in 0..length {
                age += 1;
                own += u64::from(of_its_own);
                let found = match piece {
                    Piece::Compute(_) => world.compute(ms(1)),
                    Piece::Sleep(_) => world.sleep(ms(1)),
                    Piece::Starve(_) => world.starve(ms(1)),
                };
                if let Some(stall) = began(&found) {
                    reported = true;
                    prop_assert_eq!(stall.split.total(), ms(age), "the parts add up");
                }
                prop_assert!(!reported || own >= 10, "too early, after {} ms of its own", own);
                prop_assert!(reported || own < 10 + waits, "too late, after {} ms of its own", own);
            }
            if let Piece::Starve(length) = piece {
                waits += 1;
                world.thread.as_mut().unwrap().run_queue += ms(length);
            }
        }
    }

    /// Whatever a worker does, a stall that has begun ends before the next one begins.
    #[test]
    fn beginnings_and_ends_alternate(steps in prop::collection::vec(0..7u8, 1..400)) {
        let mut world = World::parked().wake();
        let mut open = false;
        for step in steps {
            let found = match step {
                0 => { world.begin_poll(None); world.compute(TICK) }
                1 => { world.end_poll(None); world.compute(TICK) }
                2 => world.sleep(TICK),
                3 => { world.publish(TICK); world.compute(TICK) }
                4 => { world.park(); world.sleep(TICK) }
                5 => world.sleep(TICK * 3),
                _ => world.compute(TICK),
            };
            for finding in found {
                match finding {
                    Finding::Began(_) => { prop_assert!(!open); open = true; }
                    Finding::Ongoing(_) => prop_assert!(open),
                    Finding::Ended(stall) => {
                        prop_assert!(open || stall.duration >= THRESHOLD);
                        open = false;
                    }
                    Finding::Suspect(_) => {}
                }
            }
        }
    }
}
