//! How long a CPU quota has held this process back, from the statistics of its control groups.
//!
//! *Runs on:* `stall-watchdog`.
//! *Must not:* open a file once the groups are open: a tick uses `pread` only.
//!
//! No privilege is needed: every user may read the statistics of a mounted group.
//!
//! The CPU limit of a container is such a quota: an amount of CPU time in each period, usually of
//! 100 ms. Once it is used up, all threads stand still until the next period begins.

use super::evidence::is_short;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How many levels are read, from the process's own group upwards. Kubernetes makes four.
const LEVELS: usize = 8;

/// The `cpu.stat` files of this process's control groups that may have a quota.
///
/// They stay with the groups that the process was in when they were opened.
#[derive(Debug)]
pub(crate) struct Throttle {
    groups: Vec<Group>,
    /// Descriptors were short when the files were opened.
    is_incomplete: bool,
}

#[derive(Debug)]
struct Group {
    stat: File,
    quota: Option<File>,
}

impl Throttle {
    /// Opens the files. There are none if no control groups are visible.
    pub(crate) fn open() -> Throttle {
        let text = |path: &str| {
            let text = std::fs::read(path).unwrap_or_default();
            String::from_utf8_lossy(&text).into_owned()
        };
        let (memberships, mounts) = (text("/proc/self/cgroup"), text("/proc/self/mountinfo"));
        let groups = [Version::One, Version::Two].map(|version| {
            candidates(&memberships, &mounts, version)
                .iter()
                .map(|directories| open_groups(directories))
                .find(|groups| !groups.is_empty())
                .unwrap_or_default()
        });
        let again = File::open("/proc/self/cgroup");
        Throttle {
            groups: groups.into_iter().flatten().collect(),
            is_incomplete: again.is_err_and(|error| is_short(&error)),
        }
    }

    /// Whether descriptors were short when the files were opened: now there may be more.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.is_incomplete
    }

    /// Time for which the process's groups have been throttled so far: the longest of its group and
    /// that group's ancestors, whose quotas hold for the process, too. Zero without a quota.
    ///
    /// The kernel adds up the times of all CPUs on which the group had something to run, so this
    /// may grow faster than the clock. The kernel counts a time when it is over. The sum falls only
    /// if a group is removed.
    ///
    /// # Cost
    ///
    /// About 1.2 µs for each file: one per level, and mostly one more.
    pub(crate) fn read(&self) -> Duration {
        self.groups
            .iter()
            .filter_map(|group| look(&group.stat, throttled))
            .max()
            .unwrap_or_default()
    }

    /// Whether any of the groups has a quota, or has ever been throttled.
    pub(crate) fn has_quota(&self) -> bool {
        self.groups.iter().any(|group| {
            let quota = group.quota.as_ref().and_then(|file| look(file, quota));
            quota.is_some() || look(&group.stat, was_limited) == Some(true)
        })
    }
}

/// The directories of the process's group and its ancestors, in each place where they may be. A
/// hierarchy may be mounted several times, and each time only in part.
fn candidates(memberships: &str, mounts: &str, version: Version) -> Vec<Vec<PathBuf>> {
    let Some(group) = own_group(memberships, version) else {
        return Vec::new();
    };
    let mut mounts: Vec<Mount> = mounts
        .lines()
        .filter_map(Mount::parse)
        .filter(|mount| mount.version == version)
        .collect();
    // A mount with the own group comes before a mount of an ancestor alone.
    mounts.sort_by_key(Mount::is_outside);
    mounts
        .iter()
        .filter_map(|mount| mount.directories(group))
        .collect()
}

/// Opens the files in these directories, of which the first is the process's own group.
fn open_groups(directories: &[PathBuf]) -> Vec<Group> {
    let groups = directories.iter().filter_map(|directory| {
        let quota = ["cpu.max", "cpu.cfs_quota_us"]
            .iter()
            .find_map(|name| File::open(directory.join(name)).ok());
        let stat = open_statistics(directory, "cpu.stat")?;
        Some(Group { stat, quota })
    });
    // Newer kernels have a second file, which counts the quotas of all ancestors of a group, as far
    // as they held it back. A container cannot see some of these ancestors.
    let local = directories.first().and_then(|own| {
        let stat = open_statistics(own, "cpu.stat.local")?;
        Some(Group { stat, quota: None })
    });
    groups.chain(local).collect()
}

/// Opens a file of statistics. `None` without the controller: the time throttled is missing then.
fn open_statistics(directory: &Path, name: &str) -> Option<File> {
    let stat = File::open(directory.join(name)).ok()?;
    look(&stat, throttled).map(|_| stat)
}

/// Reads a file of a few lines from its beginning, without allocating.
fn look<T>(file: &File, parse: impl FnOnce(&[u8]) -> Option<T>) -> Option<T> {
    let mut buffer = [0; 1024];
    let read = file.read_at(&mut buffer, 0).ok()?;
    parse(&buffer[..read])
}

/// The value of a line such as `nr_periods 12`.
fn value(stat: &[u8], key: &str) -> Option<u64> {
    stat.split(|byte| *byte == b'\n').find_map(|line| {
        let line = std::str::from_utf8(line).ok()?;
        let value = line.strip_prefix(key)?.strip_prefix(' ')?;
        value.parse().ok()
    })
}

/// The time throttled in `cpu.stat`. The two versions have a name and a unit each.
fn throttled(stat: &[u8]) -> Option<Duration> {
    let version_two = value(stat, "throttled_usec").map(Duration::from_micros);
    version_two.or_else(|| value(stat, "throttled_time").map(Duration::from_nanos))
}

/// Whether a quota has ever been enforced, by `cpu.stat`. The local file has no periods.
fn was_limited(stat: &[u8]) -> Option<bool> {
    let periods = value(stat, "nr_periods").unwrap_or_default();
    Some(periods > 0 || throttled(stat)? > Duration::ZERO)
}

/// Microseconds of CPU in each period, if they are limited: by `cpu.max` (`20000 100000`, or `max
/// 100000`) or `cpu.cfs_quota_us` (`20000`, or `-1`).
fn quota(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    text.split_ascii_whitespace().next()?.parse().ok()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    /// A hierarchy for each controller.
    One,
    /// One hierarchy for all.
    Two,
}

/// The path of the process's group in the hierarchy that may limit CPU time, by
/// `/proc/self/cgroup`.
fn own_group(memberships: &str, version: Version) -> Option<&str> {
    memberships.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let found = match version {
            Version::One => controllers.split(',').any(|controller| controller == "cpu"),
            Version::Two => id == "0" && controllers.is_empty(),
        };
        found.then_some(path)
    })
}

/// A place where a hierarchy is mounted, or a part of it.
#[derive(Debug, PartialEq)]
struct Mount {
    version: Version,
    /// The group that is visible at `point`.
    root: String,
    point: PathBuf,
}

impl Mount {
    /// A line of `/proc/self/mountinfo`; `None` for other file systems.
    fn parse(line: &str) -> Option<Mount> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut filesystem = filesystem.split(' ');
        let version = match (filesystem.next()?, filesystem.nth(1)?) {
            ("cgroup2", _) => Version::Two,
            ("cgroup", options) if options.split(',').any(|option| option == "cpu") => Version::One,
            _ => return None,
        };
        let mut fields = mount.split(' ').skip(3).map(unescaped);
        Some(Mount {
            version,
            root: fields.next()?,
            point: fields.next()?.into(),
        })
    }

    /// Whether it begins outside of the process's namespace, at an ancestor. The kernel shows the
    /// distance of that ancestor, but not the path.
    fn is_outside(&self) -> bool {
        self.root.split('/').skip(1).all(|part| part == "..")
    }

    /// The directories of a group and of its ancestors, upwards from its own, as far as they are in
    /// this mount.
    fn directories(&self, group: &str) -> Option<Vec<PathBuf>> {
        let inside = match self.root.as_str() {
            "/" => group,
            _ if self.is_outside() => "",
            root => group.strip_prefix(root)?,
        };
        // A path that only begins alike is another group, and `..` is a group outside of the
        // namespace.
        let is_path = inside.is_empty() || inside.starts_with('/');
        if !is_path || inside.split('/').any(|part| part == "..") {
            return None;
        }
        let own = match inside.trim_matches('/') {
            "" => self.point.clone(),
            inside => self.point.join(inside),
        };
        let upwards = own
            .ancestors()
            .take_while(|directory| directory.starts_with(&self.point));
        Some(upwards.take(LEVELS).map(Path::to_owned).collect())
    }
}

/// The kernel writes white space and backslashes in paths as octal numbers.
fn unescaped(field: &str) -> String {
    field
        .replace(r"\040", " ")
        .replace(r"\011", "\t")
        .replace(r"\012", "\n")
        .replace(r"\134", r"\")
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// The directories of the first candidate, on a system with these files.
    fn directories(memberships: &str, mounts: &str, version: Version) -> Vec<String> {
        let candidates = candidates(memberships, mounts, version);
        let first = candidates.into_iter().next().unwrap_or_default();
        first
            .iter()
            .map(|directory| directory.to_str().unwrap().to_owned())
            .collect()
    }

    const NONE: [&str; 0] = [];

    #[test]
    fn on_a_host_a_service_is_limited_by_its_group_and_those_above() {
        let memberships = "0::/system.slice/api.service\n";
        let mounts = "\
            29 22 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 \
                rw,nsdelegate,memory_recursiveprot\n\
            30 22 0:27 / /sys/fs/pstore rw,nosuid,nodev,noexec,relatime shared:10 - pstore pstore rw\n";
        assert_eq!(
            directories(memberships, mounts, Version::Two),
            [
                "/sys/fs/cgroup/system.slice/api.service",
                "/sys/fs/cgroup/system.slice",
                "/sys/fs/cgroup",
            ]
        );
        assert_eq!(directories(memberships, mounts, Version::One), NONE);
    }

    #[test]
    fn with_a_namespace_of_its_own_a_container_sees_its_group_as_the_root() {
        let mounts = "\
            1514 1512 0:26 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate\n";
        assert_eq!(
            directories("0::/\n", mounts, Version::Two),
            ["/sys/fs/cgroup"]
        );
    }

    #[test]
    fn without_one_the_path_goes_beyond_what_is_mounted() {
        const GROUP: &str = "/kubepods/burstable/pod0d1e/4f2a";
        let memberships = format!(
            "12:pids:{GROUP}\n4:cpu,cpuacct:{GROUP}\n3:cpuset:{GROUP}\n1:name=systemd:{GROUP}\n"
        );
        let mounts = format!(
            "917 916 0:33 {GROUP} /sys/fs/cgroup/cpuset ro,relatime master:15 - cgroup cgroup rw,cpuset\n\
             918 916 0:34 {GROUP} /sys/fs/cgroup/cpu,cpuacct ro,relatime master:16 - cgroup cgroup \
                 rw,cpu,cpuacct\n"
        );
        assert_eq!(
            directories(&memberships, &mounts, Version::One),
            ["/sys/fs/cgroup/cpu,cpuacct"]
        );
        let nested = memberships.replace(GROUP, &format!("{GROUP}/worker"));
        assert_eq!(
            directories(&nested, &mounts, Version::One),
            [
                "/sys/fs/cgroup/cpu,cpuacct/worker",
                "/sys/fs/cgroup/cpu,cpuacct"
            ]
        );
        let neighbour = memberships.replace(GROUP, &format!("{GROUP}77"));
        assert_eq!(directories(&neighbour, &mounts, Version::One), NONE);
    }

    #[test]
    fn a_hybrid_system_has_both_versions() {
        let memberships = "\
            4:cpu,cpuacct:/user.slice\n\
            1:name=systemd:/user.slice/session-2.scope\n\
            0::/user.slice/session-2.scope\n";
        let mounts = "\
            31 23 0:28 / /sys/fs/cgroup ro shared:9 - tmpfs tmpfs ro,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw,nsdelegate\n\
            33 31 0:30 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,xattr,name=systemd\n\
            36 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw shared:14 - cgroup cgroup rw,cpu,cpuacct\n";
        assert_eq!(
            directories(memberships, mounts, Version::One),
            [
                "/sys/fs/cgroup/cpu,cpuacct/user.slice",
                "/sys/fs/cgroup/cpu,cpuacct"
            ]
        );
        assert_eq!(
            directories(memberships, mounts, Version::Two)[0],
            "/sys/fs/cgroup/unified/user.slice/session-2.scope"
        );
    }

    #[test]
    fn where_the_mount_is_above_the_namespace_an_ancestor_is_all_there_is() {
        let mounts = "29 22 0:26 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            directories("0::/\n", mounts, Version::Two),
            ["/sys/fs/cgroup"]
        );
        let both = format!("{mounts}30 22 0:26 / /own rw - cgroup2 cgroup2 rw\n");
        assert_eq!(directories("0::/\n", &both, Version::Two), ["/own"]);

        let mounts = "29 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(directories("0::/../other\n", mounts, Version::Two), NONE);
    }

    #[test]
    fn deep_groups_are_followed_for_eight_levels_and_odd_names_are_read() {
        let mounts = r"29 22 0:26 / /my\040groups\134 rw - cgroup2 cgroup2 rw";
        let found = directories("0::/a/b:c/d/e/f/g/h/i/j/k\n", mounts, Version::Two);
        assert_eq!(found.len(), LEVELS);
        assert_eq!(found[0], r"/my groups\/a/b:c/d/e/f/g/h/i/j/k");
        assert_eq!(found[7], r"/my groups\/a/b:c/d");
    }

    #[test]
    fn both_versions_of_the_statistics_are_understood() {
        let version_one = b"nr_periods 26\nnr_throttled 24\nthrottled_time 1743717662\n\
            nr_bursts 0\nburst_time 0\n";
        assert_eq!(
            throttled(version_one),
            Some(Duration::from_nanos(1_743_717_662))
        );
        assert_eq!(was_limited(version_one), Some(true));

        let version_two = b"usage_usec 201722488\nuser_usec 152281875\nsystem_usec 49440613\n\
            nice_usec 0\ncore_sched.force_idle_usec 0\nnr_periods 120\nnr_throttled 31\n\
            throttled_usec 2205117\nnr_bursts 0\nburst_usec 0\n";
        assert_eq!(
            throttled(version_two),
            Some(Duration::from_micros(2_205_117))
        );

        assert_eq!(was_limited(b"throttled_usec 7\n"), Some(true), "local");
        let never = b"nr_periods 0\nnr_throttled 0\nthrottled_time 0\n";
        assert_eq!(throttled(never), Some(Duration::ZERO));
        assert_eq!(was_limited(never), Some(false));
    }

    #[test]
    fn statistics_without_the_controller_and_absent_limits_are_none() {
        let without = b"usage_usec 201722488\nuser_usec 152281875\nsystem_usec 49440613\n";
        assert_eq!(throttled(without), None);
        assert_eq!(was_limited(without), None);
        assert_eq!(throttled(b""), None);
        assert_eq!(throttled(b"throttled_usec \xff\n"), None);

        assert_eq!(quota(b"20000 100000\n"), Some(20_000));
        assert_eq!(quota(b"20000\n"), Some(20_000));
        assert_eq!(quota(b"max 100000\n"), None);
        assert_eq!(quota(b"-1\n"), None);
        assert_eq!(quota(b""), None);
    }

    #[test]
    fn the_files_of_this_machine_are_read() {
        let throttle = Throttle::open();
        let first = throttle.read();
        assert!(throttle.read() >= first);
        if !first.is_zero() {
            assert!(throttle.has_quota());
        }
    }
}
