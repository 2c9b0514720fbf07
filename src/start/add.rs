//! Runtimes that a watch is given after its start.
//!
//! *Runs on:* the user's threads.

use super::{Guard, plan, threads};
use crate::engine::Coverage;
use crate::error::StartError;
use crate::reporter;
use crate::slot;
use tokio::runtime::Handle;

impl Guard {
    /// Watches another runtime as well, with the settings of this watch, until the guard is
    /// dropped. Does nothing if the watch is [switched off](crate::Builder::from_env).
    ///
    /// # Errors
    ///
    /// The runtime is watched already or has been shut down, or the name is empty or taken. The
    /// watch goes on as before.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let watch = tokio_stall::watch()?;
    /// let jobs = tokio::runtime::Runtime::new()?;
    /// watch.add("jobs", jobs.handle().clone())?;
    /// assert_eq!(watch.coverage().len(), 2);
    /// # jobs.shutdown_background();
    /// # Ok(())
    /// # }
    /// ```
    pub fn add(&self, name: impl Into<String>, runtime: Handle) -> Result<(), StartError> {
        self.watch_also(Some(name.into()), runtime)
    }

    /// Watches the runtime that the caller is in, under its own name or that of the calling thread.
    /// Does nothing if it is watched already.
    ///
    /// It is for frameworks that build runtimes by themselves, such as actix-web with one for each
    /// thread: call it in the factory of the application, which each of them runs.
    ///
    /// # Errors
    ///
    /// There is no runtime here.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let watch = Arc::new(tokio_stall::watch()?);
    /// let of_thread = watch.clone();
    /// let thread = std::thread::Builder::new().name("worker-1".to_owned());
    /// let thread = thread.spawn(move || -> Result<(), tokio_stall::StartError> {
    ///     let runtime = tokio::runtime::Builder::new_current_thread().build();
    ///     runtime.expect("a runtime").block_on(async { of_thread.watch_here() })
    /// })?;
    /// thread.join().expect("it does not panic")?;
    /// assert_eq!(watch.coverage()[1].runtime, "worker-1");
    /// # Ok(())
    /// # }
    /// ```
    pub fn watch_here(&self) -> Result<(), StartError> {
        let here = Handle::try_current().map_err(|_| StartError::NoRuntime)?;
        let thread = std::thread::current();
        let name = here.name().or(thread.name()).map(str::to_owned);
        match self.watch_also(name.clone(), here.clone()) {
            Err(StartError::RuntimeWatchedTwice { .. }) => Ok(()),
            // A second runtime may be driven by a thread of the same name.
            Err(StartError::NameTaken { name }) => {
                let id = here.id();
                self.watch_also(Some(format!("{name}, runtime {id}")), here)
            }
            other => other,
        }
    }

    fn watch_also(&self, name: Option<String>, runtime: Handle) -> Result<(), StartError> {
        let watch = &self.view.watch;
        if watch.is_off() {
            return Ok(());
        }
        if self.view.shared.is_inherited() {
            return Err(StartError::Forked);
        }
        threads::forget_gone(watch);
        let rules = |runtime: &Handle| plan::rules(&watch.settings, runtime);
        let id = slot::raw_id(&runtime.id());
        threads::join(vec![(name, runtime)], watch, rules)?;
        let runtimes = self.view.runtimes();
        let added = runtimes.iter().find(|known| known.id == id);
        if let Some(added) = added.filter(|_| watch.settings.log) {
            reporter::event::watching(added, &Coverage::of(added));
        }
        Ok(())
    }
}
