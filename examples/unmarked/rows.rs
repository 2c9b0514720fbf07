//! Rows of short polls, in which no poll takes as long as the threshold of 10 ms, and a clock to make them by.
//!
//! The bench `unmarked` and the tests of the same name run the same rows.

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::{block_in_place, yield_now};

pub(crate) const MS: Duration = Duration::from_millis(1);

/// Whether a row goes on.
pub(crate) type GoesOn = Arc<dyn Fn() -> bool + Send + Sync>;

/// For so long.
pub(crate) fn goes_on_for(time: Duration) -> GoesOn {
    let until = Instant::now() + time;
    Arc::new(move || Instant::now() < until)
}

/// Computes for so much time of the thread's own, however long the machine takes to give it.
#[inline(never)]
pub(crate) fn compute(time: Duration) {
    let start = cpu_time();
    while cpu_time() - start < time {
        for _ in 0..500 {
            std::hint::spin_loop();
        }
    }
}

#[cfg(target_os = "linux")]
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(not(target_os = "linux"))]
fn cpu_time() -> Duration {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// As many tasks as two workers poll before they publish their counters, each of one poll.
pub(crate) async fn many_tasks(goes_on: GoesOn, length: Duration) {
    while goes_on() {
        let tasks: Vec<_> = (0..122)
            .map(|_| tokio::spawn(async move { compute(length) }))
            .collect();
        for task in tasks {
            task.await.expect("it does not panic");
        }
    }
}

/// The same with a pause after each row, so that nothing is usual about it.
pub(crate) async fn rows_with_pauses(goes_on: GoesOn) {
    while goes_on() {
        many_tasks(goes_on_once(), MS).await;
        tokio::time::sleep(40 * MS).await;
    }
}

fn goes_on_once() -> GoesOn {
    let first = std::sync::atomic::AtomicBool::new(true);
    Arc::new(move || first.swap(false, std::sync::atomic::Ordering::Relaxed))
}

/// One task that computes and yields, again and again.
pub(crate) async fn yields(goes_on: GoesOn, length: Duration) {
    let task = async move {
        while goes_on() {
            compute(length);
            yield_now().await;
        }
    };
    tokio::spawn(task).await.expect("it does not panic");
}

/// One task that computes and wakes itself, again and again.
pub(crate) async fn wakes_itself(goes_on: GoesOn, length: Duration) {
    let task = poll_fn(move |cx| {
        compute(length);
        if !goes_on() {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    });
    tokio::spawn(task).await.expect("it does not panic");
}

/// Two tasks that wake each other: tokio polls them from the "next" slot, up to four in a turn.
pub(crate) async fn ping_pong(goes_on: GoesOn, ping: Duration, pong: Duration) {
    let (to_pong, mut from_ping) = mpsc::unbounded_channel();
    let (to_ping, mut from_pong) = mpsc::unbounded_channel();
    let other = tokio::spawn(async move {
        while next_time(&mut from_ping).await.is_some() {
            compute(pong);
            to_ping.send(()).ok();
        }
    });
    let one = tokio::spawn(async move {
        while goes_on() {
            compute(ping);
            to_pong.send(()).expect("it listens");
            next_time(&mut from_pong).await.expect("it answers");
        }
    });
    one.await.expect("it does not panic");
    other.await.expect("it does not panic");
}

/// Receives in another poll than this one. On a busy machine the answer may be there before it is waited for, on
/// another worker, and one poll could go on with it for ever.
async fn next_time<T>(from: &mut mpsc::UnboundedReceiver<T>) -> Option<T> {
    let mut early = None;
    let mut is_first = true;
    poll_fn(move |cx| {
        if let Some(early) = early.take() {
            return Poll::Ready(early);
        }
        let received = from.poll_recv(cx);
        if std::mem::take(&mut is_first) && received.is_ready() {
            cx.waker().wake_by_ref();
            if let Poll::Ready(received) = received {
                early = Some(received);
            }
            return Poll::Pending;
        }
        received
    })
    .await
}

/// Futures that one poll drives together, within the threshold.
pub(crate) async fn together(goes_on: GoesOn) {
    let task = async move {
        while goes_on() {
            let mut futures: FuturesUnordered<_> = (0..4).map(|_| async { compute(MS) }).collect();
            while futures.next().await.is_some() {}
            yield_now().await;
            let (send, mut receive) = mpsc::channel(4);
            send.send(()).await.expect("there is room");
            tokio::select! {
                _ = receive.recv() => compute(2 * MS),
                () = yield_now() => compute(2 * MS),
            }
            yield_now().await;
        }
    };
    tokio::spawn(task).await.expect("it does not panic");
}

/// Blocks, and says so: tokio gives the worker to another thread. Then so many short polls.
pub(crate) async fn in_place(goes_on: GoesOn, polls: usize) {
    let task = async move {
        while goes_on() {
            block_in_place(|| std::thread::sleep(30 * MS));
            for _ in 0..polls {
                compute(MS);
                yield_now().await;
            }
            tokio::time::sleep(5 * MS).await;
        }
    };
    tokio::spawn(task).await.expect("it does not panic");
}

/// The same beside a task that yields.
pub(crate) async fn in_place_beside_rows(goes_on: GoesOn) {
    let beside = tokio::spawn(yields(goes_on.clone(), MS));
    in_place(goes_on, 20).await;
    beside.await.expect("it does not panic");
}

/// Calls of `block_on` one after another, between which neither turn nor counter moves, and time in which nobody
/// drives the runtime.
pub(crate) fn driven_now_and_then(runtime: &tokio::runtime::Runtime, goes_on: &GoesOn) {
    while goes_on() {
        runtime.block_on(async { compute(6 * MS) });
        runtime.block_on(async { compute(6 * MS) });
        runtime.block_on(async { tokio::spawn(async {}).await.expect("it does not panic") });
        compute(30 * MS);
    }
}
