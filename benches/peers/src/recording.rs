//! dial9: a recorder with files on disk, and a runtime whose workers write to it.

use dial9::format::Decoder;
use dial9::{Dial9HandleTokioExt as _, DiskBuffer, Recorder, TokioAttachOptions};
use std::collections::HashMap;
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

/// A runtime that is recorded, into files that are removed at the end.
pub struct Recording {
    runtime: Runtime,
    recorder: Recorder,
    folder: TempDir,
}

impl Recording {
    /// As its example `production_use`, with nothing sent elsewhere and no profiler: 1 GiB of files at most, a new one
    /// each minute, and tasks tracked. The builder's hooks are dial9's.
    pub fn start(builder: Builder) -> Recording {
        let folder = tempfile::tempdir().expect("a folder for its files");
        let files = DiskBuffer::builder()
            .base_path(folder.path())
            .max_file_size(256 << 20)
            .max_total_size(1 << 30)
            .rotation_period(Duration::from_secs(60))
            .build()
            .expect("its files");
        let recorder = dial9::recorder(files).build();
        let options = TokioAttachOptions::builder()
            .task_tracking_enabled(true)
            .build();
        let runtime = recorder
            .handle()
            .attach_tokio_runtime(builder, options)
            .expect("a runtime");
        Recording {
            runtime,
            recorder,
            folder,
        }
    }

    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Stops, and counts what is in the files: events by their names.
    pub fn stop(self) -> HashMap<String, u64> {
        // The workers hand over what they still hold when they end.
        drop(self.runtime);
        self.recorder.graceful_shutdown(Duration::from_secs(10));
        let mut events = HashMap::new();
        for file in std::fs::read_dir(self.folder.path()).expect("its files") {
            let file = file.expect("its files").path();
            let trace = std::fs::read(&file).expect("a file");
            let mut decoder =
                Decoder::new(&trace).unwrap_or_else(|| panic!("{} is not a trace", file.display()));
            decoder
                .for_each_event(|event| match events.get_mut(event.name) {
                    Some(count) => *count += 1,
                    None => drop(events.insert(event.name.to_owned(), 1)),
                })
                .expect("a whole trace");
        }
        events
    }
}
