//! A CPU quota is the host's doing: it makes no stall of short polls, and a report names it if it
//! makes a stall longer.

use crate::support::child;
use crate::support::load::{compute, short_polls};
use crate::support::stage::Stage;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_stall::Cause;

const CHILD: &str = "TOKIO_STALL_TEST_QUOTA_CHILD";

const NAME: &str = "tokio-stall-test-";

/// A control group with a tenth of a CPU; removed with the value.
struct Group(PathBuf);

impl Group {
    /// `Err` if this machine does not let us make one.
    fn new() -> io::Result<Group> {
        let name = format!("{NAME}{}", std::process::id());
        let v1 = Path::new("/sys/fs/cgroup/cpu");
        let (parent, limits): (_, &[_]) = if v1.join("cpu.cfs_quota_us").exists() {
            let limits = &[
                ("cpu.cfs_period_us", "100000"),
                ("cpu.cfs_quota_us", "10000"),
            ];
            (v1, limits)
        } else {
            (Path::new("/sys/fs/cgroup"), &[("cpu.max", "10000 100000")])
        };
        let group = Group(parent.join(name));
        fs::create_dir(&group.0)?;
        for (file, limit) in limits {
            fs::write(group.0.join(file), limit)?;
        }
        Ok(group)
    }

    fn take(&self, process: u32) -> io::Result<()> {
        fs::write(self.0.join("cgroup.procs"), process.to_string())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Processes leave a group some time after they have been waited for.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The child: waits until it is in the group, then is busy with short polls.
#[test]
fn throttled_child() {
    if !child::is_here(CHILD) {
        return;
    }
    while !fs::read_to_string("/proc/self/cgroup")
        .unwrap()
        .contains(NAME)
    {
        std::thread::sleep(Duration::from_millis(5));
    }
    let stage = Stage::multi_thread(2).start();
    stage.block_on(short_polls(60));
    let false_alarms = stage.seen.certain();
    assert!(false_alarms.is_empty(), "{false_alarms:#?}");
    // Positive control: a long poll is found, and most of its time is known to be the quota's.
    let long = stage.run_stalling("long_poll", async { compute(Duration::from_millis(30)) });
    assert_eq!(long.cause, Cause::Throttled, "{long}");
    assert!(long.cause.is_host(), "{long}");
    assert!(long.time.throttled > long.time.cpu, "{long}");
    println!("throttled, and told so:\n{long}");
}

#[test]
fn a_quota_is_not_blamed_on_code() {
    let group = match Group::new() {
        Ok(group) => group,
        Err(error) => {
            eprintln!("skipped: this machine lets us make no control group with a quota ({error})");
            return;
        }
    };
    let child = child::start("quota::throttled_child", CHILD);
    group.take(child.id()).unwrap();
    println!("{}", child::assert_said(child, "throttled, and told so"));
}
