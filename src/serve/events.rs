//! `/events`: the same news for all open pages, as server-sent events.
//!
//! *Runs on:* the thread `stall-serve`.
//! *Must not:* work while no page is open, or keep more for a page than its queue holds.
//!
//! News is rendered once for all pages. Each page has a queue of [`QUEUE`] pieces of news, about
//! eight seconds. A page that does not read loses its connection, and a browser then connects
//! again.

use super::connections::Connection;
use super::feed::Feed;
use crate::clock;
use crate::engine::View;
use hyper::body::{Body, Bytes, Frame};
use parking_lot::Mutex;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// The most pages at one time. They are not among the connections that other requests have.
pub(super) const PAGES: usize = 16;
/// The time between two pieces of news.
const TICK: Duration = Duration::from_millis(250);
/// The news that waits for a page.
const QUEUE: usize = 32;
/// The time that the last words have to reach the pages.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// The open pages, and the news for them.
pub(super) struct Events {
    pages: Mutex<Pages>,
    opened: Notify,
    refused: AtomicU64,
    dropped: AtomicU64,
}

struct Pages {
    open: Vec<OpenPage>,
    feed: Feed,
}

struct OpenPage {
    queue: mpsc::Sender<Bytes>,
    connection: Arc<Connection>,
}

/// The body of an answer that goes on as long as the page is open.
#[derive(Debug)]
pub(super) struct EventStream(mpsc::Receiver<Bytes>);

impl Body for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.0.poll_recv(cx);
        next.map(|news| news.map(|news| Ok(Frame::data(news))))
    }
}

impl Pages {
    fn forget_closed(&mut self) {
        self.open.retain(|page| !page.queue.is_closed());
    }
}

impl Events {
    pub(super) fn new(view: View) -> Events {
        let pages = Pages {
            open: Vec::new(),
            feed: Feed::new(view),
        };
        Events {
            pages: Mutex::new(pages),
            opened: Notify::new(),
            refused: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    /// Whether another page finds a place.
    pub(super) fn has_room(&self) -> bool {
        let mut pages = self.pages.lock();
        pages.forget_closed();
        pages.open.len() < PAGES
    }

    /// The news for one more page, beginning with all that is known. `None` if all places are
    /// taken.
    pub(super) fn open(&self, connection: &Arc<Connection>) -> Option<EventStream> {
        if !self.has_room() {
            // Relaxed: a figure for people, written and read on one thread.
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let mut pages = self.pages.lock();
        let (queue, news) = mpsc::channel(QUEUE);
        let is_first = pages.open.is_empty();
        queue.try_send(pages.feed.all(is_first, clock::now())).ok();
        let connection = connection.clone();
        connection.becomes_a_stream();
        pages.open.push(OpenPage { queue, connection });
        self.opened.notify_one();
        Some(EventStream(news))
    }

    /// Sends news for ever; sleeps while no page is open.
    pub(super) async fn run(&self) {
        loop {
            if self.pages.lock().open.is_empty() {
                self.opened.notified().await;
            }
            tokio::time::sleep(TICK).await;
            self.tick();
        }
    }

    fn tick(&self) {
        let mut pages = self.pages.lock();
        pages.forget_closed();
        if !pages.open.is_empty() {
            let news = pages.feed.news(clock::now());
            self.send(&mut pages, &news);
        }
    }

    fn send(&self, pages: &mut Pages, news: &Bytes) {
        pages.open.retain(|page| {
            let sent = page.queue.try_send(news.clone());
            if let Err(mpsc::error::TrySendError::Full(_)) = sent {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                page.connection.cut();
            }
            sent.is_ok()
        });
    }

    /// Tells all pages that the watch has ended, and waits a moment until they have it.
    pub(super) async fn end(&self) {
        let pages: Vec<OpenPage> = self.pages.lock().open.drain(..).collect();
        let connections = pages.into_iter().map(|page| {
            page.queue.try_send(Feed::last_words()).ok();
            page.connection
        });
        let connections: Vec<_> = connections.collect();
        let all_have_it = async {
            while connections.iter().any(|connection| !connection.is_over()) {
                tokio::time::sleep(LAST_WORDS / 20).await;
            }
        };
        tokio::time::timeout(LAST_WORDS, all_have_it).await.ok();
    }

    /// One line for the index.
    pub(super) fn figures(&self) -> String {
        let open = {
            let mut pages = self.pages.lock();
            pages.forget_closed();
            pages.open.len()
        };
        let refused = self.refused.load(Ordering::Relaxed);
        let dropped = self.dropped.load(Ordering::Relaxed);
        format!("pages: {open} open of {PAGES}, {refused} refused, {dropped} cut off as too slow\n")
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::engine::{Shared, WatchedRuntime};
    use std::future::poll_fn;

    fn events(handle: &tokio::runtime::Handle) -> Events {
        let runtime = WatchedRuntime::for_tests(handle);
        let shared = Arc::new(Shared::default());
        shared.watched.lock().push(runtime.clone());
        let watch = runtime.watch.clone();
        Events::new(View { watch, shared })
    }

    async fn next(stream: &mut EventStream) -> Option<String> {
        let frame = poll_fn(|cx| Pin::new(&mut *stream).poll_frame(cx)).await?;
        let bytes = frame.unwrap().into_data().unwrap();
        Some(String::from_utf8(bytes.to_vec()).unwrap())
    }

    fn on_a_runtime(test: impl AsyncFnOnce(&Events)) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let tokio = builder.enable_time().start_paused(true).build().unwrap();
        let events = events(tokio.handle());
        tokio.block_on(test(&events));
    }

    #[test]
    fn a_page_first_gets_all_that_is_known_and_then_news() {
        on_a_runtime(async |events| {
            let mut page = events.open(&Connection::for_tests()).unwrap();
            let first = next(&mut page).await.unwrap();
            for event in ["event: hello\n", "event: lanes\n", "event: totals\n"] {
                assert!(first.contains(event), "{first}");
            }
            events.tick();
            let news = next(&mut page).await.unwrap();
            assert!(news.contains("event: lanes\n"), "{news}");
            assert!(
                !news.contains("event: hello\n"),
                "nothing has changed: {news}"
            );
            events.end().await;
            let last = next(&mut page).await.unwrap();
            assert!(last.starts_with("event: end\n"), "{last}");
            assert_eq!(next(&mut page).await, None);
        });
    }

    #[test]
    fn pages_are_limited_and_a_closed_one_makes_room() {
        on_a_runtime(async |events| {
            let open = || events.open(&Connection::for_tests());
            let mut pages: Vec<_> = (0..PAGES).map(|_| open().unwrap()).collect();
            assert!(open().is_none());
            assert!(
                events
                    .figures()
                    .contains("16 open of 16, 1 refused, 0 cut off")
            );
            pages.pop();
            assert!(open().is_some());
        });
    }

    #[test]
    fn a_page_that_does_not_read_is_cut_off_and_others_go_on() {
        on_a_runtime(async |events| {
            let mut reads = events.open(&Connection::for_tests()).unwrap();
            let _sleeps = events.open(&Connection::for_tests()).unwrap();
            for _ in 0..=QUEUE {
                next(&mut reads).await.expect("news");
                events.tick();
            }
            let figures = events.figures();
            assert!(
                figures.contains("1 open of 16, 0 refused, 1 cut off"),
                "{figures}"
            );
            assert!(next(&mut reads).await.is_some());
        });
    }
}
