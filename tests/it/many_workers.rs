//! Many workers that block at one time, more than stacks are taken of: each of them is one stall.

use crate::support::stage::Stage;
use crate::support::{Held, wait_until};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_stall::{FutureExt as _, Phase, StallReport};

const WORKERS: usize = 64;

/// Without marks and turns. Some sleeps are proven by a stack. The others are proven much later, by
/// the counters, as their stack is not taken: some twenty, if the machine has CPUs for all of them to
/// begin at one time. Polls of this program are known to leave their workers.
#[test]
fn each_of_many_sleeps_at_one_time_is_one_stall() {
    let stage = Stage::multi_thread(WORKERS)
        .settings(|builder| builder.turns(false))
        .start_at_once();
    stage.run(async {
        tokio::task::block_in_place(|| std::thread::sleep(Duration::from_millis(100)));
    });
    let (release, held) = Held::new();
    let sleepers = [(); WORKERS].map(|()| {
        let held = held.clone();
        stage.runtime.spawn(async move {
            // The mark makes the thread known.
            async {}.watched("enrols").await;
            held.wait()
        })
    });
    for worker in 0..WORKERS {
        let is_its = |report: &StallReport| report.worker == worker;
        stage.seen.wait(is_its);
    }
    drop(release);
    for sleeper in sleepers {
        stage.runtime.block_on(sleeper).unwrap();
    }
    for id in stage.seen.ids() {
        stage.seen.wait_for_end(id);
    }
    // Nothing of the sleeps is still on its way.
    let later = stage.watch.status().ticks + 100;
    wait_until("some ticks", || stage.watch.status().ticks > later);
    let mut ended = BTreeMap::new();
    let reports = stage.seen.all().into_iter();
    for report in reports.filter(|report| report.phase == Phase::Ended) {
        *ended.entry(report.worker).or_insert(0) += 1;
    }
    let once = (0..WORKERS).map(|worker| (worker, 1)).collect();
    assert_eq!(ended, once, "{:#?}", stage.seen.all());
}
