//! `watch_polls()` goes together with the user's own hooks. With `tokio_unstable` it names tasks.

use crate::support::stage::{Stage, sleeps};
use crate::support::wait_until;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio_stall::{RuntimeBuilderExt as _, RuntimeHooks};

/// On a busy machine the signal of a stack, or a late watchdog, takes some of a sleep's blame away.
const LONG: Duration = Duration::from_secs(1);

fn counts(counter: &Arc<AtomicUsize>) -> impl Fn() + Send + Sync + 'static {
    let counter = counter.clone();
    move || {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn hooks_of_the_users_own_are_called_too() {
    let (parks, unparks) = (Arc::default(), Arc::default());
    let hooks = RuntimeHooks::new()
        .on_thread_park(counts(&parks))
        .on_thread_unpark(counts(&unparks));
    let stage = Stage::multi_thread(1).runtime(|builder| builder.watch_polls_with(hooks));
    let stage = stage.start();
    stage.run(sleeps(LONG));
    stage.seen.wait_for_an_end();
    wait_until("the user's hooks", || {
        stage.run(async { tokio::time::sleep(Duration::from_millis(1)).await });
        parks.load(Ordering::Relaxed) > 0 && unparks.load(Ordering::Relaxed) > 0
    });
}

/// Has another thread take the worker over. The first thread does not get it back while the other
/// one is busy.
async fn moves_the_worker() {
    let (send, receive) = std::sync::mpsc::channel::<()>();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        send.send(()).unwrap();
    });
    tokio::task::block_in_place(|| receive.recv().unwrap());
}

#[test]
fn the_thread_of_a_worker_that_moved_is_known_again() {
    let stage = Stage::multi_thread(1).runtime(|builder| builder.watch_polls());
    let stage = stage.start();
    stage.run(moves_the_worker());
    stage.block_on(async { tokio::time::sleep(Duration::from_millis(50)).await });
    let tid = stage.run(async {
        std::thread::sleep(LONG);
        #[cfg(target_os = "linux")]
        return crate::support::process::tid();
        #[cfg(not(target_os = "linux"))]
        return 0;
    });
    let ended = stage.seen.wait_for_an_end();
    if cfg!(target_os = "linux") {
        assert_eq!(ended.tid, Some(tid), "{ended}");
    }
}

#[cfg(tokio_unstable)]
#[test]
fn a_task_is_named_by_its_id_and_its_place_of_spawn() {
    let polls: Arc<AtomicUsize> = Arc::default();
    let count = counts(&polls);
    let hooks = RuntimeHooks::new().on_before_task_poll(move |_| count());
    let stage = Stage::multi_thread(2).runtime(|builder| builder.watch_polls_with(hooks));
    let stage = stage.start();
    let line = line!() + 1;
    let task = stage.runtime.spawn(async {
        tokio::task::yield_now().await;
        std::thread::sleep(LONG);
    });
    let id = task.id().to_string();
    stage.block_on(task).unwrap();
    let ended = stage.seen.wait_for_an_end();
    assert_eq!(ended.task.map(|task| task.to_string()), Some(id));
    let place = format!("tests/it/hooks.rs:{line}");
    assert!(ended.to_string().contains(&format!("spawned at {place}")));
    assert_eq!(ended.spawned_at, Some(place));
    crate::support::assert_at_least(ended.duration, LONG);
    assert!(crate::support::missing_names(&ended).is_empty(), "{ended}");
    let polls = polls.load(Ordering::Relaxed);
    assert!(polls >= 2, "the user's hook is called as well");
    assert!(stage.watch.coverage()[0].all_polls);
}
