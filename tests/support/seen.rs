//! The reports of a watch, and waits for more of them.

use super::FOREVER;
use std::collections::HashSet;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;
use tokio::task::JoinHandle;
use tokio_stall::{Builder, Certainty, FutureExt as _, Guard, Phase, StallReport};

/// All reports so far, in their order.
#[derive(Clone, Default)]
pub struct Seen(Arc<(Mutex<Vec<StallReport>>, Condvar)>);

impl Seen {
    /// A builder whose watch reports to the other value.
    pub fn builder() -> (Builder, Seen) {
        let seen = Seen::default();
        let told = seen.clone();
        let builder = Builder::new().on_stall(move |report| {
            let (reports, news) = &*told.0;
            reports.lock().unwrap().push(report.clone());
            news.notify_all();
        });
        (builder, seen)
    }

    /// Watches the runtime that the caller is in.
    pub fn watch() -> (Guard, Seen) {
        let (builder, seen) = Seen::builder();
        (builder.start().expect("a runtime is here"), seen)
    }

    pub fn all(&self) -> Vec<StallReport> {
        self.0.0.lock().unwrap().clone()
    }

    /// The stalls, by number. Numbers count in the whole process, which may have run other tests.
    pub fn ids(&self) -> HashSet<u64> {
        self.all().iter().map(|report| report.id).collect()
    }

    /// The first report that fits, now or later.
    #[track_caller]
    pub fn wait(&self, fits: impl Fn(&StallReport) -> bool) -> StallReport {
        self.wait_until(|reports| reports.iter().find(|report| fits(report)).cloned())
    }

    #[track_caller]
    fn wait_until(&self, told: impl Fn(&[StallReport]) -> Option<StallReport>) -> StallReport {
        let (reports, news) = &*self.0;
        let deadline = Instant::now() + FOREVER;
        let mut reports = reports.lock().unwrap();
        loop {
            if let Some(report) = told(&reports) {
                return report;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "waited in vain; all there is: {reports:#?}"
            );
            reports = news.wait_timeout(reports, left).unwrap().0;
        }
    }

    #[track_caller]
    pub fn wait_for_end(&self, id: u64) -> StallReport {
        self.wait(|report| report.id == id && report.phase == Phase::Ended)
    }

    /// The last report of a stall with this mark.
    #[track_caller]
    pub fn wait_for_end_of(&self, name: &str) -> StallReport {
        self.wait(|report| report.phase == Phase::Ended && report.span.as_deref() == Some(name))
    }

    /// The last report of any stall.
    #[track_caller]
    pub fn wait_for_an_end(&self) -> StallReport {
        self.wait(|report| report.phase == Phase::Ended)
    }

    /// Blocks a worker of the current runtime until a report of it, and returns the first one.
    /// However slow the machine is, the stall is as long as it takes.
    ///
    /// Two such stalls in a row on one worker may look like one: nothing marks the end of a poll.
    pub async fn stall_until_told(&self) -> StallReport {
        let before = self.all().len();
        self.stall_until(
            move |reports| reports.get(before).cloned(),
            |held| tokio::spawn(held),
        )
        .await
    }

    /// Does the same in a poll with a mark, which is a stall of its own.
    pub async fn marked_stall_until_told(&self) -> StallReport {
        let known = self.ids();
        let is_new = move |report: &&StallReport| !known.contains(&report.id);
        self.stall_until(
            move |reports| reports.iter().find(&is_new).cloned(),
            |held| tokio::spawn(held.watched("held")),
        )
        .await
    }

    async fn stall_until(
        &self,
        told: impl Fn(&[StallReport]) -> Option<StallReport> + Send + 'static,
        spawn: impl FnOnce(Pin<Box<dyn Future<Output = ()> + Send>>) -> JoinHandle<()>,
    ) -> StallReport {
        let (send, receive) = std::sync::mpsc::channel::<()>();
        let blocked = spawn(Box::pin(async move {
            receive.recv().ok();
        }));
        let seen = self.clone();
        let began = tokio::task::spawn_blocking(move || seen.wait_until(told));
        let began = began.await.unwrap();
        drop(send);
        blocked.await.unwrap();
        began
    }

    pub fn certain(&self) -> Vec<StallReport> {
        let certain = |report: &StallReport| report.certainty == Certainty::Certain;
        self.all().into_iter().filter(certain).collect()
    }

    #[track_caller]
    pub fn assert_nothing_certain(&self) {
        let certain = self.certain();
        assert!(certain.is_empty(), "false alarm: {certain:#?}");
    }

    #[track_caller]
    pub fn assert_nothing(&self) {
        let all = self.all();
        assert!(all.is_empty(), "false alarm: {all:#?}");
    }
}
