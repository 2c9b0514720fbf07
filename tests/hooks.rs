//! `watch_polls()`: composes with the user's own hooks, and with `tokio_unstable` names every task.

mod seen;

use seen::Seen;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::runtime::Builder;
use tokio_stall::{Phase, RuntimeBuilderExt as _, RuntimeHooks};

const LONG: Duration = Duration::from_millis(80);

#[test]
fn hooks_of_the_users_own_are_called_too() {
    let (parks, unparks) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let count = |counter: &Arc<AtomicUsize>| {
        let counter = counter.clone();
        move || {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    };
    let hooks = RuntimeHooks::new()
        .on_thread_park(count(&parks))
        .on_thread_unpark(count(&unparks));
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .watch_polls_with(hooks)
        .build()
        .unwrap();
    runtime.block_on(async {
        let (_watch, seen) = Seen::watch();
        tokio::spawn(async { std::thread::sleep(LONG) })
            .await
            .unwrap();
        seen.wait(|report| report.phase == Phase::Ended);
    });
    let deadline = std::time::Instant::now() + seen::FOREVER;
    while parks.load(Ordering::Relaxed) == 0 || unparks.load(Ordering::Relaxed) == 0 {
        assert!(
            std::time::Instant::now() < deadline,
            "the user's hooks are not called"
        );
        runtime
            .block_on(async { tokio::spawn(tokio::time::sleep(Duration::from_millis(1))).await })
            .unwrap();
    }
}

#[test]
fn the_thread_of_a_worker_that_moved_is_known_again() {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .watch_polls()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (_watch, seen) = Seen::watch();
        let first = tokio::spawn(async {
            let thread = std::thread::current().id();
            // Another thread takes the worker over, and this one does not get it back while that is busy.
            let (send, receive) = std::sync::mpsc::channel::<()>();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                send.send(()).unwrap();
            });
            tokio::task::block_in_place(|| receive.recv().unwrap());
            thread
        });
        first.await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let stalled = tokio::spawn(async {
            std::thread::sleep(LONG);
            #[cfg(target_os = "linux")]
            return rustix::thread::gettid().as_raw_nonzero().get() as u32;
            #[cfg(not(target_os = "linux"))]
            return 0;
        });
        let tid = stalled.await.unwrap();
        let ended = seen.wait(|report| report.phase == Phase::Ended);
        if cfg!(target_os = "linux") {
            assert_eq!(ended.tid, Some(tid), "{ended}");
        }
    });
}

#[cfg(tokio_unstable)]
#[test]
fn every_task_is_named_by_its_id_and_the_place_that_spawned_it() {
    let before = Arc::new(AtomicUsize::new(0));
    let counter = before.clone();
    let hooks = RuntimeHooks::new().on_before_task_poll(move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .watch_polls_with(hooks)
        .build()
        .unwrap();
    runtime.block_on(async {
        let (watch, seen) = Seen::watch();
        let line = line!() + 1;
        let task = tokio::spawn(async {
            tokio::task::yield_now().await;
            std::thread::sleep(LONG);
        });
        let id = task.id().to_string();
        task.await.unwrap();
        let ended = seen.wait(|report| report.phase == Phase::Ended);
        assert_eq!(ended.task.map(|task| task.to_string()), Some(id));
        assert_eq!(ended.spawned_at, Some(format!("tests/hooks.rs:{line}")));
        assert!(
            ended.duration >= LONG && seen::missing_names(&ended).is_empty(),
            "{ended}"
        );
        assert!(
            before.load(Ordering::Relaxed) >= 2,
            "the user's hook is called as well"
        );
        assert!(watch.coverage()[0].all_polls);
        assert!(ended.to_string().contains("spawned at tests/hooks.rs"));
    });
}
