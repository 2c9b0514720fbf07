//! The flight recorder: what came before a stall can be seen while it lasts, and is kept in a file.

use crate::support::scraped::get;
use crate::support::stage::Stage;
use crate::support::{Held, wait_until};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_stall::{Blocking, Cause, FutureExt as _, Phase, StallReport, StartError};

/// A recording, read as a viewer reads it.
struct Recording(Value);

impl Recording {
    fn ask(address: SocketAddr, path: &str) -> Recording {
        let answer = get(address, path).expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert!(answer.head.contains("application/json"), "{}", answer.head);
        Recording::parse(&answer.body)
    }

    fn parse(text: &str) -> Recording {
        let recording = Recording(serde_json::from_str(text).expect("JSON"));
        recording.check();
        recording
    }

    fn read(path: &Path) -> Recording {
        Recording::parse(&fs::read_to_string(path).expect("a file"))
    }

    fn events(&self) -> impl Iterator<Item = &Value> {
        self.0["traceEvents"].as_array().expect("events").iter()
    }

    /// The rules of the trace-event format for the phases that are used here.
    fn check(&self) {
        let (mut named, mut used) = (BTreeSet::new(), BTreeSet::new());
        for event in self.events() {
            let (name, args) = (event["name"].as_str(), &event["args"]);
            let pid = event["pid"].as_u64().expect("a number");
            let tid = event["tid"].as_u64().expect("a number");
            assert!(args.is_object() && name.is_some(), "{event}");
            let time = |key: &str| event[key].as_f64().filter(|time| *time >= 0.0);
            match event["ph"].as_str().expect("a phase") {
                "M" => match name {
                    Some("process_name" | "thread_name") => {
                        assert!(args["name"].is_string(), "{event}");
                        assert!(named.insert((pid, tid)), "named twice: {event}");
                    }
                    Some("thread_sort_index") => assert!(args["sort_index"].is_u64(), "{event}"),
                    _ => panic!("{event}"),
                },
                "X" => {
                    assert!(time("ts").is_some() && time("dur").is_some(), "{event}");
                    used.insert((pid, tid));
                    used.insert((pid, 0));
                }
                "C" => {
                    assert!(time("ts").is_some(), "{event}");
                    let values = args.as_object().expect("values");
                    assert!(values.values().all(Value::is_number), "{event}");
                }
                // A phase that begins without an end, or ends without a begin, is not among them.
                _ => panic!("an unknown phase: {event}"),
            }
        }
        assert!(
            used.is_subset(&named),
            "without a name: {used:?} of {named:?}"
        );
        self.check_lanes(&used);
    }

    /// The events of one lane follow each other: a viewer drops those that overlap and do not nest.
    fn check_lanes(&self, lanes: &BTreeSet<(u64, u64)>) {
        for (pid, tid) in lanes {
            let of_lane = |event: &&Value| event["pid"] == *pid && event["tid"] == *tid;
            let times = self
                .events()
                .filter(of_lane)
                .filter(|event| event["ph"] == "X");
            let mut end = 0.0;
            for event in times {
                let (ts, dur) = (
                    event["ts"].as_f64().unwrap(),
                    event["dur"].as_f64().unwrap(),
                );
                // Half a nanosecond, for numbers of this size.
                assert!(ts >= end - 0.0005, "overlaps: {event}, {end}");
                end = ts + dur;
            }
        }
    }

    /// The states of a worker, oldest first: the name, and the stall.
    fn lane(&self, worker: usize) -> Vec<(&str, Option<u64>)> {
        let of_worker = |event: &&Value| event["ph"] == "X" && event["tid"] == worker + 1;
        let states = self.events().filter(of_worker).map(|event| {
            let name = event["name"].as_str().expect("a name");
            (name, event["args"]["stall"].as_u64())
        });
        states.collect()
    }

    /// The stall that holds a worker now.
    fn held_by(&self, worker: usize) -> Option<u64> {
        self.lane(worker).last().and_then(|(_, stall)| *stall)
    }

    /// The stalls by number, each with whether it goes on.
    fn stalls(&self) -> Vec<(u64, bool)> {
        let stall = |event: &Value| {
            let args = &event["args"];
            Some((args["id"].as_u64()?, args["goes_on"].as_bool()?))
        };
        self.events().filter_map(stall).collect()
    }

    fn stall(&self, id: u64) -> &Value {
        let mut events = self.events();
        let event = events.find(|event| event["args"]["id"] == id);
        &event.expect("the stall")["args"]
    }
}

#[test]
fn a_stall_is_seen_while_it_lasts_with_what_came_before_it() {
    let stage = Stage::multi_thread(2)
        .named("recorded </script>\u{1b}[31m")
        .settings(|builder| builder.serve(([127, 0, 0, 1], 0)))
        .start();
    let address = stage.watch.served_at().expect("an address");
    let ask = || Recording::ask(address, "/debug/recording");
    let (release, held) = Held::new();
    let blocked = stage
        .runtime
        .spawn(async move { held.wait() }.watched("held </script>"));
    // By then its cause does not change any more.
    let told = stage.seen.wait(|report| {
        let is_long = report.duration >= Duration::from_millis(160);
        is_long && report.site.is_some() && report.cause == Cause::Blocked(Blocking::Lock)
    });
    wait_until("the stall is recorded", || {
        ask().held_by(told.worker).is_some()
    });
    let during = ask();
    assert_eq!(during.held_by(told.worker), Some(told.id));
    // It came after something else, which is recorded.
    let lane = during.lane(told.worker);
    let before = lane
        .iter()
        .position(|(name, _)| *name == "held")
        .expect("held");
    assert!(before > 0, "{lane:?}");
    assert_ne!(lane[before - 1].0, "held");
    // Control: the other worker is free.
    let other = 1 - told.worker;
    assert_eq!(during.held_by(other), None);
    assert!(!during.lane(other).is_empty());
    assert!(during.stalls().contains(&(told.id, true)));
    assert_stall(during.stall(told.id), &told);
    drop(release);
    stage.block_on(blocked).expect("it ends");
    let ended = stage.seen.wait_for_end(told.id);
    wait_until("it is over", || ask().held_by(told.worker).is_none());
    let after = ask();
    assert!(after.stalls().contains(&(ended.id, false)));
    assert!(after.lane(told.worker).contains(&("held", Some(told.id))));
}

fn assert_stall(stall: &Value, told: &StallReport) {
    let site = told.site.as_ref().expect("a site");
    assert_eq!(stall["span"], "held </script>");
    assert_eq!(stall["site"], site.to_string());
    assert_eq!(stall["cause"], told.cause.as_str());
    let report = stall["report"].as_str().expect("a text");
    assert!(report.contains("stack"), "{report}");
}

#[test]
fn a_recording_has_the_length_that_is_asked_for() {
    let stage = Stage::multi_thread(1)
        .named("lengths")
        .settings(|builder| builder.serve(([127, 0, 0, 1], 0)))
        .start();
    let address = stage.watch.served_at().expect("an address");
    let begin = |path: &str| {
        let recording = Recording::ask(address, path);
        let times = recording.events().filter(|event| event["ph"] == "X");
        let first = times
            .filter_map(|event| event["ts"].as_f64())
            .fold(f64::MAX, f64::min);
        recording.0["otherData"]["made_at"]
            .as_f64()
            .expect("a time")
            - first
    };
    wait_until("there are two seconds", || {
        begin("/debug/recording") > 2_000_000.0
    });
    // A segment that is cut by the begin is whole.
    let second = begin("/debug/recording?seconds=1");
    assert!((700_000.0..1_300_000.0).contains(&second), "{second}");
    for wrong in ["seconds=0", "seconds=1e9", "minutes=1"] {
        let answer = get(address, &format!("/debug/recording?{wrong}")).expect("an answer");
        assert_eq!(answer.status, 400, "{wrong}");
        assert!(answer.body.starts_with("seconds=30"), "{}", answer.body);
    }
}

const LONG: Duration = Duration::from_millis(300);

/// A runtime whose long stalls are recorded.
fn recorded(name: &str, directory: &Path, keep: usize) -> Stage {
    Stage::multi_thread(1)
        .named(name)
        .settings(|builder| builder.record_stalls(directory, LONG, keep))
        .start()
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("a directory");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let is_json = |path: &PathBuf| {
        path.extension()
            .is_some_and(|extension| extension == "json")
    };
    let mut paths: Vec<_> = paths.filter(is_json).collect();
    paths.sort();
    paths
}

/// The numbers of the stalls that have files.
fn recorded_in(directory: &Path) -> BTreeSet<u64> {
    let files = files(directory);
    let ids = files.iter().filter_map(|path| {
        // The oldest may be removed since.
        let recording = Recording::parse(&fs::read_to_string(path).ok()?);
        let id = recording.0["otherData"]["stall"].as_u64();
        Some(id.expect("a number"))
    });
    ids.collect()
}

/// Blocks the worker for longer than it takes to be recorded. `meanwhile` is called once a report
/// is long enough.
fn long_stall(stage: &Stage, meanwhile: impl FnOnce(&StallReport)) -> StallReport {
    let earlier = stage.seen.all().iter().map(|report| report.id).max();
    let (release, held) = Held::new();
    let blocked = stage
        .runtime
        .spawn(async move { held.wait() }.watched("long"));
    let told = stage
        .seen
        .wait(|report| Some(report.id) > earlier && report.duration > LONG);
    meanwhile(&told);
    drop(release);
    stage.block_on(blocked).expect("it ends");
    stage.seen.wait_for_end(told.id)
}

#[test]
fn a_long_stall_leaves_a_file_and_a_short_one_leaves_none() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("made/here");
    let stage = recorded("files", &path, 2);
    // On a busy machine a stall may be longer than it is meant to be.
    let short = std::iter::repeat_with(|| stage.stall().ended).find(|ended| ended.duration < LONG);
    let short = short.expect("an endless row");
    let ended = long_stall(&stage, |told| {
        // It is there while the stall lasts, in case the process is killed in it.
        wait_until("a file", || recorded_in(&path).contains(&told.id));
        let files = files(&path);
        let file = files.iter().map(|file| Recording::read(file)).next_back();
        assert!(file.expect("a file").stalls().contains(&(told.id, true)));
    });
    let of_it = || {
        let recordings = files(&path).into_iter().map(|file| Recording::read(&file));
        let mut of_it = recordings.filter(|one| one.0["otherData"]["stall"] == ended.id);
        of_it.next().expect("a file")
    };
    wait_until("it is complete", || {
        of_it().stalls().contains(&(ended.id, false))
    });
    assert!(!recorded_in(&path).contains(&short.id));
    let recording = of_it();
    let lane = recording.lane(ended.worker);
    let held = lane
        .iter()
        .position(|state| *state == ("held", Some(ended.id)));
    assert!(
        held.expect("it is in the lane") > 0,
        "nothing came before: {lane:?}"
    );
    assert_ne!(
        lane.last(),
        Some(&("held", Some(ended.id))),
        "nothing came after: {lane:?}"
    );
    // A file is counted after it is there.
    wait_until("both writes are counted", || {
        stage.watch.status().recordings.written >= 2
    });
    // Two files are kept, the newest.
    let ids = [(); 2].map(|()| long_stall(&stage, |_| ()).id);
    wait_until("the oldest goes", || {
        recorded_in(&path) == BTreeSet::from(ids)
    });
}

#[test]
fn a_stall_that_has_just_ended_is_recorded_when_the_watch_ends() {
    let directory = tempfile::tempdir().expect("a directory");
    let stage = recorded("ends", directory.path(), 5);
    let ended = long_stall(&stage, |_| ());
    assert_eq!(ended.phase, Phase::Ended);
    drop(stage);
    let files = files(directory.path());
    let [file] = &files[..] else {
        panic!("{files:?}");
    };
    assert!(Recording::read(file).stalls().contains(&(ended.id, false)));
}

#[test]
fn a_directory_that_is_lost_is_counted_and_the_watch_goes_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("lost");
    let stage = recorded("lost", &path, 5);
    fs::remove_dir(&path).expect("it is empty");
    fs::write(&path, "in the way").expect("a file");
    long_stall(&stage, |_| ());
    wait_until("an error", || stage.watch.status().recordings.failed > 0);
    assert_eq!(stage.watch.status().recordings.written, 0);
    // Control: with the directory back, the next stall has a file.
    fs::remove_file(&path).expect("a file");
    let ended = long_stall(&stage, |_| ());
    wait_until("a file", || {
        path.is_dir() && recorded_in(&path).contains(&ended.id)
    });
    stage.stall();
}

#[test]
fn a_directory_that_cannot_be_made_is_refused_with_its_path_and_the_fix() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().join("below");
    let setup = Stage::multi_thread(1)
        .named("refused")
        .settings(|builder| builder.record_stalls(&path, LONG, 5));
    let error = setup.try_start().err().expect("an error");
    assert!(matches!(error, StartError::Recordings { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&path.display().to_string()), "{text}");
    assert!(
        text.contains("give `Builder::record_stalls` a directory"),
        "{text}"
    );
}
