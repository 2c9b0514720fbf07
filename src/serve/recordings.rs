//! Recordings of long stalls, as files: what came before, during and shortly after.
//!
//! *Runs on:* its own thread, `stall-recorder`. The thread that starts a watch tries the directory.
//! *Must not:* be waited for: a disk may be slow, full or gone. An error is counted, and logged
//! once per kind.
//!
//! A stall that goes on is written once, in case the process is killed; and again, in place of the
//! first, when it is over.

use crate::clock::{self, Nanos};
use crate::engine::View;
use crate::engine::recording::{RecordStalls, RecordingNews, Window, record};
use crate::os;
use crate::report::{Phase, StallReport};
use crate::reporter::guarded;
use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufWriter, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

/// The time before a stall that is in its recording.
const BEFORE: Duration = Duration::from_secs(10);
/// The time after it.
const AFTER: Duration = Duration::from_secs(1);
/// The most files that are written in a minute; further stalls in it are counted as left out.
const A_MINUTE: usize = 60;
const MINUTE: Duration = Duration::from_secs(60);
/// The most stalls that are remembered as written while they go on.
const GOING_ON: usize = 256;
/// The name of a file that is not complete: these two, and letters between them.
const PART: (&str, &str) = (".stall-", ".part");
const PART_LETTERS: usize = 6;
/// A file that was written to so long ago is of a process that was killed meanwhile.
const LEFT_BEHIND: Duration = Duration::from_secs(60);
/// The drop of a watch waits this long for recordings that are being written.
const LONGEST_END: Duration = Duration::from_secs(1);

/// The thread that writes recordings. The drop writes those that wait, and ends it.
#[derive(Debug)]
pub(crate) struct Recordings {
    news: SyncSender<RecordingNews>,
    thread: Option<JoinHandle<()>>,
}

/// Makes the directory, and tries to write into it.
pub(crate) fn try_directory(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    remove_left_behind(directory);
    temporary(directory)?.close()
}

/// A file in this directory that has no name yet by which it would count.
fn temporary(directory: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PART.0).suffix(PART.1);
    builder.rand_bytes(PART_LETTERS).tempfile_in(directory)
}

fn is_part(name: &str) -> bool {
    let letters = name.strip_prefix(PART.0);
    let letters = letters.and_then(|rest| rest.strip_suffix(PART.1));
    letters.is_some_and(|letters| {
        letters.len() == PART_LETTERS
            && letters.chars().all(|letter| letter.is_ascii_alphanumeric())
    })
}

/// Removes the incomplete files of processes that were killed while they wrote. An error is no
/// reason to record nothing: such a file may be another user's.
fn remove_left_behind(directory: &Path) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_str().is_some_and(is_part)) {
        let age = entry.metadata().ok().filter(fs::Metadata::is_file);
        let age = age.and_then(|file| file.modified().ok()?.elapsed().ok());
        if age.is_some_and(|age| age > LEFT_BEHIND) {
            fs::remove_file(entry.path()).ok();
        }
    }
}

impl Recordings {
    /// Starts the thread for a view whose stalls are sent through `news`.
    pub(crate) fn start(
        view: View,
        stalls: RecordStalls,
        news: SyncSender<RecordingNews>,
        received: Receiver<RecordingNews>,
    ) -> io::Result<Recordings> {
        let mut writer = RecordingWriter {
            view,
            stalls,
            waiting: Vec::new(),
            going_on: VecDeque::new(),
            written_at: VecDeque::new(),
            logged: Vec::new(),
        };
        let thread = os::spawn("stall-recorder", move || writer.run(&received))?;
        Ok(Recordings {
            news,
            thread: Some(thread),
        })
    }

    /// Lets go of a thread that is not in this process.
    pub(crate) fn forget(self) {
        std::mem::forget(self);
    }
}

impl Drop for Recordings {
    fn drop(&mut self) {
        let deadline = clock::now().plus(LONGEST_END);
        let mut is_told = false;
        let Some(thread) = self.thread.take() else {
            return;
        };
        while !thread.is_finished() && clock::now() < deadline {
            is_told = is_told || self.news.try_send(RecordingNews::Stop).is_ok();
            std::thread::sleep(Duration::from_micros(200));
        }
        if thread.is_finished() {
            // A panic of the thread has been printed.
            thread.join().ok();
        }
    }
}

struct RecordingWriter {
    view: View,
    stalls: RecordStalls,
    /// The stalls that are over, and when their recordings are due.
    waiting: Vec<(Nanos, Box<StallReport>)>,
    /// The stalls that were written while they went on, with their files.
    going_on: VecDeque<(u64, PathBuf)>,
    /// When the last files were written.
    written_at: VecDeque<Nanos>,
    /// The kinds of errors that have been logged.
    logged: Vec<ErrorKind>,
}

impl RecordingWriter {
    /// The thread's main function. Ends with the watch.
    fn run(&mut self, news: &Receiver<RecordingNews>) {
        loop {
            let due = self.waiting.iter().map(|(due, _)| *due).min();
            let wait = due.map_or(MINUTE, |due| due.since(clock::now()));
            match news.recv_timeout(wait) {
                Ok(RecordingNews::Stall(report)) => self.take(report, clock::now()),
                Err(RecvTimeoutError::Timeout) => {}
                Ok(RecordingNews::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            }
            self.write_due(clock::now());
        }
        self.write_due(Nanos(u64::MAX));
    }

    fn take(&mut self, report: Box<StallReport>, now: Nanos) {
        if report.phase == Phase::Ended {
            self.waiting.push((now.plus(AFTER), report));
        } else if !self.going_on.iter().any(|(id, _)| *id == report.id) {
            let path = self.stalls.directory.join(file_name(&report));
            self.write(&report, &path, now);
            self.going_on.truncate(GOING_ON - 1);
            self.going_on.push_front((report.id, path));
        }
    }

    fn write_due(&mut self, now: Nanos) {
        let waiting = std::mem::take(&mut self.waiting);
        let (due, later): (Vec<_>, _) = waiting.into_iter().partition(|(due, _)| *due <= now);
        self.waiting = later;
        for (_, report) in due {
            let known = self.going_on.iter().position(|(id, _)| *id == report.id);
            let known = known.and_then(|index| self.going_on.remove(index));
            let new = || self.stalls.directory.join(file_name(&report));
            let path = known.map_or_else(new, |(_, path)| path);
            self.write(&report, &path, clock::now());
        }
    }

    /// Writes a recording, and removes the oldest ones beyond the limit.
    fn write(&mut self, report: &StallReport, path: &Path, now: Nanos) {
        let watch = self.view.watch.clone();
        self.written_at.retain(|at| now.since(*at) < MINUTE);
        if self.written_at.len() >= A_MINUTE {
            watch.recordings.left_out.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.written_at.push_back(now);
        match self.try_write(report, path) {
            Ok(()) => {
                watch.recordings.written.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                watch.recordings.failed.fetch_add(1, Ordering::Relaxed);
                self.log(&error);
            }
        }
    }

    fn try_write(&self, report: &StallReport, path: &Path) -> io::Result<()> {
        let directory = &self.stalls.directory;
        // It may have been removed since the start.
        fs::create_dir_all(directory)?;
        // Before the new file, which needs the room.
        remove_left_behind(directory);
        let since = SystemTime::now().duration_since(report.started_at);
        let begun = clock::now().minus(since.unwrap_or_default());
        let to = match report.phase {
            Phase::Ended => begun.plus(report.duration).plus(AFTER),
            _ => clock::now(),
        };
        let window = Window {
            from: begun.minus(BEFORE),
            to,
        };
        let trace = record(&self.view, window, Some(report));
        let file = temporary(directory)?;
        let mut buffered = BufWriter::new(file);
        serde_json::to_writer(&mut buffered, &trace)?;
        buffered.flush()?;
        let file = buffered
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        file.persist(path)?;
        remove_beyond(directory, self.stalls.keep)
    }

    /// Logs an error, once for each kind.
    fn log(&mut self, error: &io::Error) {
        if self.logged.contains(&error.kind()) || !self.view.watch.settings.log {
            return;
        }
        self.logged.push(error.kind());
        let directory = self.stalls.directory.display();
        let runtimes = self.view.runtimes();
        let _context = runtimes.first().map(|runtime| runtime.handle.enter());
        let log = || {
            tracing::error!(
                target: "tokio_stall",
                "a stall could not be recorded in {directory} ({error}): {}; further errors of \
                 this kind are only counted, in `Status`",
                fix(error.kind())
            );
        };
        os::with_signals_of_the_program(|| guarded(&self.view.shared, log));
    }
}

fn fix(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "free some space, or keep fewer recordings"
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "let the process write there, or give `Builder::record_stalls` another directory"
        }
        _ => "see that the directory can be written to",
    }
}

/// The name of a stall's recording: `stall-17-20260131T235959.123Z.json`.
fn file_name(report: &StallReport) -> String {
    format!("stall-{}-{}.json", report.id, utc(report.started_at))
}

/// A time in UTC, as letters that sort by it and that every file system takes.
fn utc(at: SystemTime) -> String {
    let text = humantime::format_rfc3339_millis(at).to_string();
    text.replace(['-', ':'], "")
}

/// The time in the name of a recording, and the number; `None` for any other file.
fn parse_name(name: &str) -> Option<(&str, u64)> {
    let name = name.strip_prefix("stall-")?.strip_suffix(".json")?;
    let (id, at) = name.split_once('-')?;
    let is_time = at.len() == "20260131T235959.123Z".len()
        && at
            .chars()
            .all(|character| character.is_ascii_digit() || "T.Z".contains(character));
    let is_number = id.chars().all(|character| character.is_ascii_digit());
    let id = id.parse().ok().filter(|_| is_number)?;
    is_time.then_some((at, id))
}

/// Removes the oldest recordings of this directory beyond so many, whichever process wrote them.
fn remove_beyond(directory: &Path, keep: usize) -> io::Result<()> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name().into_string();
        names.extend(name.ok().filter(|name| parse_name(name).is_some()));
    }
    names.sort_by(|one, other| parse_name(one).cmp(&parse_name(other)));
    let beyond = names.len().saturating_sub(keep);
    for name in &names[..beyond] {
        match fs::remove_file(directory.join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::engine::{Shared, WatchedRuntime};
    use std::sync::{Arc, Mutex};

    #[test]
    fn a_time_is_written_in_utc() {
        let at = |seconds: u64| utc(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "19700101T000000.000Z");
        assert_eq!(at(951_782_400), "20000229T000000.000Z");
        assert_eq!(at(951_868_799), "20000229T235959.000Z");
        assert_eq!(at(1_709_164_800), "20240229T000000.000Z");
        assert_eq!(at(1_735_689_599), "20241231T235959.000Z");
        assert_eq!(at(4_107_542_400), "21000301T000000.000Z");
        assert_eq!(at(4_107_542_399), "21000228T235959.000Z");
        let fraction = SystemTime::UNIX_EPOCH + Duration::from_millis(1_234);
        assert_eq!(utc(fraction), "19700101T000001.234Z");
    }

    #[test]
    fn a_name_is_one_of_a_recording_or_of_something_else() {
        let report = StallReport {
            started_at: SystemTime::UNIX_EPOCH,
            ..crate::report::example()
        };
        let name = file_name(&report);
        assert_eq!(name, "stall-17-19700101T000000.000Z.json");
        assert_eq!(parse_name(&name), Some(("19700101T000000.000Z", 17)));
        for other in [
            "stall-17.json",
            "stall-+7-19700101T000000.000Z.json",
            "stall-17-19700101T000000.000Z.json.bak",
            "stall-17-yesterday0000000000.json",
            ".stall-x.part",
            "notes-17-19700101T000000.000Z.json",
        ] {
            assert_eq!(parse_name(other), None, "{other}");
        }
    }

    #[test]
    fn the_oldest_recordings_go_first_and_other_files_stay() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        // A later process begins its numbers anew.
        let recordings = [
            "stall-900-20260101T000000.000Z.json",
            "stall-1000-20260101T000000.000Z.json",
            "stall-3-20260201T000000.000Z.json",
        ];
        for name in recordings.iter().chain(&["notes.json", "stall-x.json"]) {
            fs::write(path(name), "{}").expect("a file");
        }
        remove_beyond(directory.path(), 3).expect("nothing to do");
        assert!(recordings.iter().all(|name| path(name).exists()));
        remove_beyond(directory.path(), 2).expect("it can");
        let kept: Vec<_> = recordings.iter().map(|name| path(name).exists()).collect();
        assert_eq!(kept, [false, true, true]);
        remove_beyond(directory.path(), 1).expect("it can");
        assert!(path(recordings[2]).exists() && !path(recordings[1]).exists());
        assert!(path("notes.json").exists() && path("stall-x.json").exists());
    }

    /// A file of this age.
    fn write_aged(path: &Path, age: Duration) {
        let file = fs::File::create(path).expect("a file");
        file.set_modified(SystemTime::now() - age).expect("a time");
    }

    #[test]
    fn incomplete_files_of_killed_processes_go_and_other_files_stay() {
        let tokio = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let runtime = WatchedRuntime::for_tests(tokio.handle());
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let kept = [
            ("stall-3-20260201T000000.000Z.json", 10 * MINUTE),
            (".stall-Now123.part", Duration::ZERO),
            (".stall-abc12.part", 10 * MINUTE),
            (".stall-abc.12.part", 10 * MINUTE),
            (".stall-Abc123.part.bak", 10 * MINUTE),
            ("notes.part", 10 * MINUTE),
        ];
        let stay = || kept.iter().all(|(name, _)| path(name).exists());
        for (name, age) in kept {
            write_aged(&path(name), age);
        }
        let left = path(".stall-Abc123.part");
        write_aged(&left, 10 * MINUTE);
        try_directory(directory.path()).expect("it can be written to");
        assert!(!left.exists() && stay(), "{:?}", files(directory.path()));
        write_aged(&left, 10 * MINUTE);
        writer(&runtime, directory.path()).take(stall(17, Phase::Ongoing), clock::now());
        assert!(!left.exists() && stay(), "{:?}", files(directory.path()));
        // The control: files are made under names of this kind.
        let file = temporary(directory.path()).expect("a file");
        let name = file.path().file_name().and_then(std::ffi::OsStr::to_str);
        assert!(name.is_some_and(is_part), "{name:?}");
    }

    /// A writer of a watch that nothing drives, into this directory.
    fn writer(runtime: &Arc<WatchedRuntime>, directory: &Path) -> RecordingWriter {
        let shared = Arc::new(Shared::default());
        shared.watched.lock().push(runtime.clone());
        let watch = runtime.watch.clone();
        RecordingWriter {
            view: View { watch, shared },
            stalls: RecordStalls {
                directory: directory.to_owned(),
                longer_than: Duration::ZERO,
                keep: 3,
            },
            waiting: Vec::new(),
            going_on: VecDeque::new(),
            written_at: VecDeque::new(),
            logged: Vec::new(),
        }
    }

    fn stall(id: u64, phase: Phase) -> Box<StallReport> {
        Box::new(StallReport {
            id,
            phase,
            runtime: "test".to_owned(),
            worker: 0,
            started_at: SystemTime::now(),
            ..crate::report::example()
        })
    }

    fn files(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).expect("a directory");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        names
            .map(|name| name.into_string().expect("a name"))
            .collect()
    }

    fn goes_on(directory: &Path) -> bool {
        let [name] = &files(directory)[..] else {
            panic!("one file");
        };
        let text = fs::read_to_string(directory.join(name)).expect("a file");
        let trace: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let events = trace["traceEvents"].as_array().expect("events");
        let mut stalls = events
            .iter()
            .filter_map(|event| event["args"]["goes_on"].as_bool());
        stalls.next().expect("a stall")
    }

    #[test]
    fn a_stall_is_written_once_while_it_goes_on_and_once_when_it_is_over() {
        let tokio = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let runtime = WatchedRuntime::for_tests(tokio.handle());
        let directory = tempfile::tempdir().expect("a directory");
        let mut writer = writer(&runtime, directory.path());
        let written = || runtime.watch.recordings.written.load(Ordering::Relaxed);
        let now = clock::now();
        writer.take(stall(17, Phase::Ongoing), now);
        writer.take(stall(17, Phase::Ongoing), now);
        assert_eq!(written(), 1);
        assert!(goes_on(directory.path()));
        writer.take(stall(17, Phase::Ended), now);
        writer.write_due(now);
        assert_eq!(written(), 1, "what comes after it is not there yet");
        writer.write_due(now.plus(AFTER));
        assert_eq!(written(), 2);
        assert!(!goes_on(directory.path()));
        assert!(writer.going_on.is_empty() && writer.waiting.is_empty());
    }

    #[test]
    fn so_many_files_a_minute_are_written_and_so_many_are_kept() {
        let tokio = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let runtime = WatchedRuntime::for_tests(tokio.handle());
        let directory = tempfile::tempdir().expect("a directory");
        let mut writer = writer(&runtime, directory.path());
        let now = clock::now();
        for id in 1..=A_MINUTE as u64 + 5 {
            writer.take(stall(id, Phase::Ongoing), now);
        }
        let counts = &runtime.watch.recordings;
        assert_eq!(counts.left_out.load(Ordering::Relaxed), 5);
        assert_eq!(counts.written.load(Ordering::Relaxed), A_MINUTE as u64);
        assert_eq!(files(directory.path()).len(), 3);
        writer.take(stall(1000, Phase::Ongoing), now.plus(MINUTE));
        assert_eq!(counts.left_out.load(Ordering::Relaxed), 5, "a minute later");
    }

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(text);
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_error_is_counted_each_time_and_logged_once_for_its_kind() {
        let tokio = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let runtime = WatchedRuntime::for_tests(tokio.handle());
        let file = tempfile::NamedTempFile::new().expect("a file");
        let mut writer = writer(&runtime, &file.path().join("below"));
        let log = Log::default();
        let written_to = log.clone();
        let builder = tracing_subscriber::fmt().with_writer(move || written_to.clone());
        let subscriber = builder.finish();
        tracing::subscriber::with_default(subscriber, || {
            for id in 1..=3 {
                writer.take(stall(id, Phase::Ongoing), clock::now());
            }
        });
        let failed = runtime.watch.recordings.failed.load(Ordering::Relaxed);
        assert_eq!(failed, 3);
        let log = String::from_utf8(log.0.lock().unwrap().clone()).expect("text");
        assert_eq!(log.matches("could not be recorded").count(), 1, "{log}");
        assert!(
            log.contains("see that the directory can be written to"),
            "{log}"
        );
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        let new = directory.path().join("a/b");
        try_directory(&new).expect("it is made");
        assert_eq!(fs::read_dir(&new).expect("it is there").count(), 0);
        let file = directory.path().join("file");
        fs::write(&file, "").expect("a file");
        assert!(try_directory(&file.join("below")).is_err());
        assert!(try_directory(&file).is_err());
    }
}
