//! Tokio's own hooks as a probe: `Builder::new_multi_thread().watch_polls().build()`.
//!
//! *Runs on:* worker threads: around every poll (with `tokio_unstable`), after every park (always).
//! *Must not:* allocate, lock, call the system or panic around a poll, apart from the user's own
//! hooks. A place of spawn allocates at its first poll.

use crate::slot;
use std::fmt;
use tokio::runtime::Builder;

#[cfg(tokio_unstable)]
use crate::slot::{Mark, names};
#[cfg(tokio_unstable)]
use tokio::runtime::TaskMeta;

/// Lets the runtime itself mark its polls.
pub trait RuntimeBuilderExt {
    /// Marks the polls of the runtime about to be built, as far as tokio's hooks allow.
    ///
    /// | built with | shows |
    /// |---|---|
    /// | stable tokio | the thread of each worker, also after `block_in_place`; ends leaked marks |
    /// | `--cfg tokio_unstable` | also every poll of every task, with its id and place of spawn |
    ///
    /// Neither shows the future given to `block_on` itself.
    ///
    /// **Tokio's builder keeps one function for each hook**: a later call of, say,
    /// `on_thread_unpark` on the same builder silently replaces this crate's function, and this
    /// call replaces an earlier one. Hooks of your own go through
    /// [`watch_polls_with`](Self::watch_polls_with), which calls both.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_stall::RuntimeBuilderExt as _;
    ///
    /// let runtime = tokio::runtime::Builder::new_multi_thread()
    ///     .enable_all()
    ///     .watch_polls()
    ///     .build()?;
    /// # drop(runtime);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    fn watch_polls(&mut self) -> &mut Self {
        self.watch_polls_with(RuntimeHooks::new())
    }

    /// As [`watch_polls`](Self::watch_polls), together with hooks of your own.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_stall::{RuntimeBuilderExt as _, RuntimeHooks};
    ///
    /// let runtime = tokio::runtime::Builder::new_multi_thread()
    ///     .watch_polls_with(RuntimeHooks::new().on_thread_unpark(|| { /* yours */ }))
    ///     .build()?;
    /// # drop(runtime);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    fn watch_polls_with(&mut self, hooks: RuntimeHooks) -> &mut Self;
}

type Hook = Box<dyn Fn() + Send + Sync>;
#[cfg(tokio_unstable)]
type TaskHook = Box<dyn Fn(&TaskMeta<'_>) + Send + Sync>;

/// The user's own functions for the hooks that [`RuntimeBuilderExt::watch_polls_with`] takes.
#[derive(Default)]
#[must_use = "hooks do nothing until given to `watch_polls_with`"]
pub struct RuntimeHooks {
    thread_park: Option<Hook>,
    thread_unpark: Option<Hook>,
    #[cfg(tokio_unstable)]
    before_task_poll: Option<TaskHook>,
    #[cfg(tokio_unstable)]
    after_task_poll: Option<TaskHook>,
}

impl RuntimeHooks {
    /// No functions.
    pub fn new() -> RuntimeHooks {
        RuntimeHooks::default()
    }

    /// As [`tokio::runtime::Builder::on_thread_park`].
    pub fn on_thread_park(self, f: impl Fn() + Send + Sync + 'static) -> RuntimeHooks {
        RuntimeHooks {
            thread_park: Some(Box::new(f)),
            ..self
        }
    }

    /// As [`tokio::runtime::Builder::on_thread_unpark`].
    pub fn on_thread_unpark(self, f: impl Fn() + Send + Sync + 'static) -> RuntimeHooks {
        RuntimeHooks {
            thread_unpark: Some(Box::new(f)),
            ..self
        }
    }

    /// As tokio's `Builder::on_before_task_poll`. It runs inside the mark: its time counts as the
    /// poll's.
    #[cfg(tokio_unstable)]
    pub fn on_before_task_poll(
        self,
        f: impl Fn(&TaskMeta<'_>) + Send + Sync + 'static,
    ) -> RuntimeHooks {
        RuntimeHooks {
            before_task_poll: Some(Box::new(f)),
            ..self
        }
    }

    /// As tokio's `Builder::on_after_task_poll`. It runs inside the mark: its time counts as the
    /// poll's.
    #[cfg(tokio_unstable)]
    pub fn on_after_task_poll(
        self,
        f: impl Fn(&TaskMeta<'_>) + Send + Sync + 'static,
    ) -> RuntimeHooks {
        RuntimeHooks {
            after_task_poll: Some(Box::new(f)),
            ..self
        }
    }
}

impl fmt::Debug for RuntimeHooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuntimeHooks")
            .field("thread_park", &self.thread_park.is_some())
            .field("thread_unpark", &self.thread_unpark.is_some())
            .finish_non_exhaustive()
    }
}

impl RuntimeBuilderExt for Builder {
    fn watch_polls_with(&mut self, hooks: RuntimeHooks) -> &mut Self {
        if let Some(park) = hooks.thread_park {
            self.on_thread_park(park);
        }
        let users_unpark = hooks.thread_unpark;
        self.on_thread_unpark(move || {
            unparked();
            if let Some(unpark) = &users_unpark {
                unpark();
            }
        });
        #[cfg(tokio_unstable)]
        mark_tasks(self, hooks.before_task_poll, hooks.after_task_poll);
        self
    }
}

fn unparked() {
    slot::reset_marks();
    if cfg!(tokio_unstable) {
        slot::mine().inspect(|slot| slot.mark_all_polls_seen());
    }
}

#[cfg(tokio_unstable)]
fn mark_tasks(builder: &mut Builder, before: Option<TaskHook>, after: Option<TaskHook>) {
    builder.on_before_task_poll(move |task| {
        begin_task(task);
        if let Some(before) = &before {
            before(task);
        }
    });
    builder.on_after_task_poll(move |task| {
        if let Some(after) = &after {
            after(task);
        }
        end_task();
    });
}

#[cfg(tokio_unstable)]
#[inline]
fn begin_task(task: &TaskMeta<'_>) {
    // The place comes first: a reader that sees the poll open sees its place.
    if let Some(slot) = slot::mine() {
        let place = names::Name::Place(task.spawned_at());
        slot.line.set_place(names::number(place));
    }
    slot::begin(Mark::TASK, slot::raw_id(&task.id()));
}

#[cfg(tokio_unstable)]
#[inline]
fn end_task() {
    if let Some(slot) = slot::end_quickly() {
        slot.end_slowly(&|| None);
    }
}
