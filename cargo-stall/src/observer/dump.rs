//! `tokio-stall dump`: the stacks of all threads of a runtime now.
//!
//! *Runs on:* the main thread.

use crate::observer::args::Options;
use crate::observer::problem::Problem;
use crate::observer::sight::{Sight, Stops};
use crate::observer::target::{Target, plain};
use crate::observer::text;
use std::io::Write;
use tokio_stall::outside::{Doing, Human, ThreadPlace, ThreadStack, shown_lines};

/// One thread and its stack.
struct Dumped {
    tid: u32,
    name: String,
    doing: String,
    stack: Result<ThreadStack, String>,
}

pub(crate) fn dump(pid: u32, options: &Options, out: &mut impl Write) -> Result<(), Problem> {
    let target = Target::open(pid)?;
    let mut sight = Sight::new(target, options.threshold, &options.own);
    sight.process.prime();
    let mut threads = Vec::new();
    for tid in sight.target.threads() {
        threads.extend(dumped(&mut sight, tid)?);
    }
    if threads.is_empty() || !sight.target.is_there() {
        return Err(Problem::Exited(pid));
    }
    if !sight.has_names {
        return Err(Problem::Stripped(pid));
    }
    for thread in &threads {
        if options.json {
            writeln!(out, "{}", json(thread))?;
        } else if thread.is_shown(options.all) {
            writeln!(out, "{}", text::shown(&thread.text()))?;
        }
    }
    if !options.json {
        write_end(&threads, sight.stops, out)?;
    }
    Ok(())
}

fn write_end(threads: &[Dumped], stops: Stops, out: &mut impl Write) -> std::io::Result<()> {
    let number = |wanted: fn(ThreadPlace) -> bool| {
        let stacks = threads
            .iter()
            .filter_map(|thread| thread.stack.as_ref().ok());
        stacks.filter(|stack| wanted(stack.place)).count()
    };
    let workers = number(ThreadPlace::is_worker);
    let polling = number(|place| place == ThreadPlace::Polling);
    let pool = number(|place| matches!(place, ThreadPlace::BusyPool | ThreadPlace::IdlePool));
    let all = threads.len();
    writeln!(
        out,
        "{workers} workers, {polling} of them in a poll; {pool} threads of a blocking pool; {all} \
         threads in all"
    )?;
    match stops.count {
        0 => Ok(()),
        count => writeln!(
            out,
            "{count} were stopped for a moment, {} at most with the wait for a CPU",
            Human(stops.longest)
        ),
    }
}

/// One thread's stack; `None` if it has exited.
fn dumped(sight: &mut Sight, tid: u32) -> Result<Option<Dumped>, Problem> {
    let name = sight.target.thread_name(tid);
    let Some(mut thread) = sight.process.thread(tid)? else {
        return Ok(None);
    };
    let Some(look) = thread.look() else {
        return Ok(None);
    };
    let (doing, stack) = match look.doing {
        Doing::Sleeps(Some(call)) => {
            let stack = match sight.sleeping_stack(call, || thread.look() != Some(look)) {
                Some(stack) if stack.lost => stopped(sight, tid)?,
                Some(stack) => Ok(stack),
                None => Err("it has just woken up".to_owned()),
            };
            (format!("asleep in {}", call.name()), stack)
        }
        Doing::Runs => ("computing".to_owned(), stopped(sight, tid)?),
        Doing::Sleeps(None) => ("asleep".to_owned(), stopped(sight, tid)?),
        Doing::Unknown => ("stopped".to_owned(), stopped(sight, tid)?),
    };
    Ok(Some(Dumped {
        tid,
        name,
        doing,
        stack,
    }))
}

fn stopped(sight: &mut Sight, tid: u32) -> Result<Result<ThreadStack, String>, Problem> {
    match sight.stopped_stack(tid, false) {
        Ok(stack) if stack.truncated => {
            let deeper = sight.stopped_stack(tid, true);
            Ok(Ok(deeper.unwrap_or(stack)))
        }
        Ok(stack) => Ok(Ok(stack)),
        Err(error) => match sight.target.why_no_stop(&error) {
            Some(problem) => Err(problem),
            None => Ok(Err(error.to_string())),
        },
    }
}

/// The part of a runtime in words.
pub(crate) fn words(place: ThreadPlace) -> &'static str {
    match place {
        ThreadPlace::Elsewhere => "no part of a runtime",
        ThreadPlace::IdlePool => "blocking pool, idle",
        ThreadPlace::BusyPool => "blocking pool, in a closure",
        ThreadPlace::Parked => "worker, parked",
        ThreadPlace::Scheduling => "worker, between polls",
        ThreadPlace::Polling => "worker, in a poll",
        ThreadPlace::Handed => "was a worker, in block_in_place",
    }
}

impl Dumped {
    fn place(&self) -> ThreadPlace {
        let stack = self.stack.as_ref();
        stack.map_or(ThreadPlace::Elsewhere, |stack| stack.place)
    }

    fn is_shown(&self, all: bool) -> bool {
        all || self.place() != ThreadPlace::Elsewhere || self.stack.is_err()
    }

    fn text(&self) -> String {
        let Dumped {
            tid, name, doing, ..
        } = self;
        let stack = match &self.stack {
            Ok(stack) => stack,
            Err(why) => return format!("{} ({tid}): {doing}, no stack: {why}", plain(name)),
        };
        let head = format!("{} ({tid}): {}, {doing}", plain(name), words(stack.place));
        let lines = match stack.place {
            ThreadPlace::Parked | ThreadPlace::IdlePool => Vec::new(),
            ThreadPlace::Polling | ThreadPlace::Handed => shown_lines(&stack.frames),
            _ => stack.frames.iter().map(ToString::to_string).collect(),
        };
        let lines = lines.iter().map(|line| format!("\n  {}", plain(line)));
        head + &lines.collect::<String>()
    }
}

fn json(thread: &Dumped) -> serde_json::Value {
    let (frames, why) = match &thread.stack {
        Ok(stack) => (Some(&stack.frames), None),
        Err(why) => (None, Some(why)),
    };
    serde_json::json!({
        "tid": thread.tid,
        "thread": thread.name,
        "place": words(thread.place()),
        "state": thread.doing,
        "frames": frames,
        "no_stack": why,
    })
}
