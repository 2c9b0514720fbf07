//! The process that is looked at: whether it can be, its threads and its name.
//!
//! *Runs on:* the main thread.

use crate::observer::problem::Problem;
use std::fs;
use std::io;
use std::num::NonZeroU32;
use std::path::PathBuf;

/// A process that can be looked at.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) pid: NonZeroU32,
    /// The name of its program.
    pub(crate) name: String,
}

impl Target {
    /// Checks that the process can be looked at.
    pub(crate) fn open(pid: u32) -> Result<Target, Problem> {
        let target = Target::unchecked(pid)?;
        target.check_program()?;
        target.check_access()?;
        Ok(target)
    }

    /// A child of this process, which may not have begun its program yet.
    pub(crate) fn unchecked(pid: u32) -> Result<Target, Problem> {
        let number = NonZeroU32::new(pid).ok_or(Problem::NoProcess(pid))?;
        if fs::metadata(format!("/proc/{pid}")).is_err() {
            return Err(Problem::NoProcess(pid));
        }
        let program = fs::read_link(format!("/proc/{pid}/exe")).ok();
        let name = program.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        let name = name.unwrap_or_else(|| comm(&format!("/proc/{pid}/comm")));
        Ok(Target {
            pid: number,
            name: plain(&name),
        })
    }

    fn check_program(&self) -> Result<(), Problem> {
        let pid = self.pid.get();
        let path = PathBuf::from(format!("/proc/{pid}/exe"));
        let head = fs::File::open(&path).and_then(|mut file| {
            let mut head = [0; 20];
            io::Read::read_exact(&mut file, &mut head).map(|()| head)
        });
        let head = head.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => Problem::Forbidden(pid),
            io::ErrorKind::NotFound if self.is_there() => Problem::NoProgram(pid),
            io::ErrorKind::NotFound => Problem::Exited(pid),
            _ => Problem::File(path, error),
        })?;
        check_head(&head, pid)
    }

    /// Opens what a look needs: the system call of the main thread, and a stop of it.
    fn check_access(&self) -> Result<(), Problem> {
        let pid = self.pid.get();
        if let Some(tracer) = self.tracer().filter(|tracer| *tracer != 0) {
            return Err(Problem::Traced(pid, tracer));
        }
        let call = fs::read(format!("/proc/{pid}/task/{pid}/syscall"));
        call.map(drop).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => Problem::Forbidden(pid),
            _ if !self.is_there() => Problem::Exited(pid),
            _ => Problem::Forbidden(pid),
        })
    }

    fn tracer(&self) -> Option<u32> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        field(&status, "TracerPid:")?.parse().ok()
    }

    /// Whether it still runs. A process that has ended and waits for its parent does not.
    pub(crate) fn is_there(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid));
        let state = stat.ok().and_then(|stat| {
            let (_, after) = stat.rsplit_once(") ")?;
            after.chars().next()
        });
        state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
    }

    /// The numbers of its threads, in order.
    pub(crate) fn threads(&self) -> Vec<u32> {
        let Ok(entries) = fs::read_dir(format!("/proc/{}/task", self.pid)) else {
            return Vec::new();
        };
        let names = entries.flatten().map(|entry| entry.file_name());
        let mut tids: Vec<u32> = names
            .filter_map(|name| name.to_str()?.parse().ok())
            .collect();
        tids.sort_unstable();
        tids
    }

    /// The name of a thread.
    pub(crate) fn thread_name(&self, tid: u32) -> String {
        comm(&format!("/proc/{}/task/{tid}/comm", self.pid))
    }

    /// How often a thread has gone to sleep so far.
    pub(crate) fn sleeps(&self, tid: u32) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/task/{tid}/status", self.pid)).ok()?;
        field(&status, "voluntary_ctxt_switches:")?.parse().ok()
    }

    /// Whether threads of it may be stopped. A thread that cannot be is said to be so by its error.
    pub(crate) fn why_no_stop(&self, error: &io::Error) -> Option<Problem> {
        let is_forbidden = error.kind() == io::ErrorKind::PermissionDenied;
        is_forbidden.then(|| Problem::Forbidden(self.pid.get()))
    }
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = status.lines();
    lines
        .find_map(|line| line.strip_prefix(name))
        .map(str::trim)
}

/// Checks the beginning of an ELF file: its class, and its processor.
fn check_head(head: &[u8; 20], pid: u32) -> Result<(), Problem> {
    if head[..4] != *b"\x7fELF" {
        return Err(Problem::NoProgram(pid));
    }
    if head[4] != 2 {
        return Err(Problem::ThirtyTwoBit(pid));
    }
    let machine = u16::from_le_bytes([head[18], head[19]]);
    let ours = if cfg!(target_arch = "x86_64") {
        62
    } else {
        183
    };
    match machine == ours {
        true => Ok(()),
        false => Err(Problem::Foreign(pid)),
    }
}

fn comm(path: &str) -> String {
    let name = fs::read(path).unwrap_or_default();
    plain(String::from_utf8_lossy(&name).trim_end())
}

/// A name that the other program has chosen, without characters that steer a terminal.
pub(crate) fn plain(name: &str) -> String {
    name.replace(|character: char| character.is_control(), "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(class: u8, machine: u16) -> [u8; 20] {
        let mut head = [0; 20];
        head[..4].copy_from_slice(b"\x7fELF");
        head[4] = class;
        head[18..].copy_from_slice(&machine.to_le_bytes());
        head
    }

    #[test]
    fn programs_of_other_machines_are_told_apart() {
        let ours = if cfg!(target_arch = "x86_64") {
            62
        } else {
            183
        };
        assert!(check_head(&head(2, ours), 7).is_ok());
        let said = |head: [u8; 20]| check_head(&head, 7).unwrap_err().to_string();
        assert!(said(head(1, 3)).contains("32 bits"));
        assert!(said(head(2, 243)).contains("another processor"));
        assert!(said([0; 20]).contains("belongs to the kernel"));
    }

    #[test]
    fn names_do_not_steer_a_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\nc"), "a\u{fffd}[2Jb\u{fffd}c");
    }

    #[test]
    fn a_process_that_is_not_there_is_said_to_be_so() {
        let said = Target::open(u32::MAX - 1).unwrap_err().to_string();
        assert_eq!(said, "there is no process 4294967294");
        assert!(Target::open(0).is_err());
        assert!(Target::open(std::process::id()).is_ok());
    }
}
