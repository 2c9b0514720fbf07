//! A profile in the format of pprof, for `go tool pprof`, Pyroscope, Parca and Grafana.
//!
//! *Runs on:* threads that ask for it, and `stall-serve`.
//!
//! The messages are those of `profile.proto`, of the repository `google/pprof`, as far as a
//! profile of stalls has values for them. Fields have the numbers and names they have there.

use super::profile::{NO_STACK, OTHER, Profile};
use super::stacks::{ProfiledCall, StackCalls, StackKey, Weight};
use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;
use std::collections::HashMap;
use std::io::Write as _;
use std::time::{Duration, SystemTime};

#[derive(Clone, PartialEq, Message)]
struct PprofProfile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<PprofValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<PprofSample>,
    #[prost(message, repeated, tag = "3")]
    mapping: Vec<PprofMapping>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<PprofLocation>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<PprofFunction>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(int64, tag = "14")]
    default_sample_type: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct PprofValueType {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct PprofSample {
    /// The innermost first.
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<PprofLabel>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct PprofLabel {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    str: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct PprofMapping {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "5")]
    filename: i64,
    #[prost(int64, tag = "6")]
    build_id: i64,
    #[prost(bool, tag = "7")]
    has_functions: bool,
    #[prost(bool, tag = "8")]
    has_filenames: bool,
    #[prost(bool, tag = "9")]
    has_line_numbers: bool,
    #[prost(bool, tag = "10")]
    has_inline_frames: bool,
}

#[derive(Clone, PartialEq, Message)]
struct PprofLocation {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    mapping_id: u64,
    #[prost(uint64, tag = "3")]
    address: u64,
    /// The last one contains the code of all others.
    #[prost(message, repeated, tag = "4")]
    line: Vec<PprofLine>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct PprofLine {
    #[prost(uint64, tag = "1")]
    function_id: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct PprofFunction {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
    #[prost(int64, tag = "4")]
    filename: i64,
}

impl Profile {
    /// The profile as a file of pprof: `profile.proto`, compressed with gzip.
    ///
    /// Each sample is a stack from the stalled function out to the poll's outermost own function.
    /// It has two values, `stalls` in `count` and `lost` in `nanoseconds`; tools show `lost`
    /// first. Its labels are `runtime`, `cause` and, if the poll had a name, `span`. A stall with
    /// several stacks shares its time among them, and is counted at the representative one: the
    /// sums are those of [`sites`](Self::sites). A stall without a stack has the only function
    /// `[no stack]`, and all that did not fit is at `other`.
    ///
    /// Functions are named as in a report, with a longer full name as system name. Functions that
    /// the compiler has inlined are lines of one location. `time_nanos` is the start of the watch,
    /// and `duration_nanos` the time from there to the call of
    /// [`Guard::profile`](crate::Guard::profile): values are totals since the start, as in Go's
    /// profile of blocking.
    ///
    /// It takes a few milliseconds for a thousand stacks, and the memory of the uncompressed file:
    /// up to a few megabytes.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let folder = folder.path();
    /// let watch = tokio_stall::watch()?;
    /// std::thread::sleep(std::time::Duration::from_millis(20));
    /// // Later: `go tool pprof -top stalls.pb.gz`.
    /// std::fs::write(folder.join("stalls.pb.gz"), watch.profile().pprof())?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn pprof(&self) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        let bytes = PprofTables::of(self).encode_to_vec();
        // A vector takes everything.
        encoder.write_all(&bytes).ok();
        encoder.finish().unwrap_or_default()
    }
}

/// A profile in the making, with the numbers of the things that are already in it.
#[derive(Default)]
struct PprofTables<'a> {
    made: PprofProfile,
    texts: HashMap<&'a str, i64>,
    functions: HashMap<[i64; 3], u64>,
    mappings: HashMap<[i64; 2], u64>,
    /// By the numbers of their calls.
    locations: HashMap<Vec<u32>, u64>,
    /// The locations of functions that stand for no stack.
    bare: HashMap<&'a str, u64>,
}

impl<'a> PprofTables<'a> {
    fn of(profile: &'a Profile) -> PprofProfile {
        let mut tables = PprofTables::default();
        // The first text is the empty one.
        tables.text("");
        tables.made.sample_type = vec![
            tables.value_type("stalls", "count"),
            tables.value_type("lost", "nanoseconds"),
        ];
        tables.made.default_sample_type = tables.text("lost");
        tables.name_the_program(profile);
        let mut stacks: Vec<_> = profile.stacks.iter().collect();
        // The largest first, so that the same profile gives the same file but for ties.
        stacks.sort_by_key(|(_, weight)| std::cmp::Reverse((weight.time, weight.stalls)));
        for (key, weight) in stacks {
            tables.add_sample(profile, key, *weight);
        }
        tables.add_times(profile);
        tables.made
    }

    /// The first mapping is that of the program itself, by which tools name the profile.
    fn name_the_program(&mut self, profile: &'a Profile) {
        let mut stacks = profile.stacks.iter();
        let own = stacks.find_map(|(key, _)| {
            let mut calls = profile.stacks.calls(&key.calls);
            calls.find(|(_, call)| call.is_own && call.module.is_some())
        });
        if let Some((_, call)) = own {
            self.mapping(call);
        }
    }

    fn add_times(&mut self, profile: &Profile) {
        let Some(begun_at) = profile.begun_at else {
            return;
        };
        let since_1970 = begun_at.duration_since(SystemTime::UNIX_EPOCH);
        self.made.time_nanos = nanoseconds(since_1970.unwrap_or_default());
        let taken_at = profile.taken_at.unwrap_or(begun_at);
        let lasted = taken_at.duration_since(begun_at).unwrap_or_default();
        self.made.duration_nanos = nanoseconds(lasted);
    }

    fn add_sample(&mut self, profile: &'a Profile, key: &'a StackKey, weight: Weight) {
        let location_id = match key.calls {
            StackCalls::Known(_) => self.locations(profile.stacks.calls(&key.calls)),
            StackCalls::NoStack => vec![self.bare_location(NO_STACK)],
            StackCalls::Other => vec![self.bare_location(OTHER)],
        };
        let stalls = i64::try_from(weight.stalls).unwrap_or(i64::MAX);
        let sample = PprofSample {
            location_id,
            value: vec![stalls, nanoseconds(weight.time)],
            label: self.labels(key),
        };
        self.made.sample.push(sample);
    }

    fn labels(&mut self, key: &'a StackKey) -> Vec<PprofLabel> {
        let labels = [
            ("runtime", Some(&*key.runtime)),
            ("span", key.span.as_deref()),
            ("cause", Some(key.cause.as_str())),
        ];
        let known = labels
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)));
        known
            .map(|(name, value)| PprofLabel {
                key: self.text(name),
                str: self.text(value),
            })
            .collect()
    }

    /// The locations of a stack: functions inlined into one another share one.
    fn locations(&mut self, calls: impl Iterator<Item = (u32, &'a ProfiledCall)>) -> Vec<u64> {
        let mut locations = Vec::new();
        let mut group = Vec::new();
        for (number, call) in calls {
            group.push((number, call));
            if !call.inlined {
                locations.push(self.location(&group));
                group.clear();
            }
        }
        if !group.is_empty() {
            locations.push(self.location(&group));
        }
        locations
    }

    /// The location of calls of which the last one contains the others.
    fn location(&mut self, calls: &[(u32, &'a ProfiledCall)]) -> u64 {
        let numbers: Vec<u32> = calls.iter().map(|(number, _)| *number).collect();
        if let Some(id) = self.locations.get(&numbers) {
            return *id;
        }
        let mut line = Vec::new();
        for (_, call) in calls {
            line.push(PprofLine {
                function_id: self.function(call),
                line: call.line.unwrap_or(0).into(),
            });
        }
        let outermost = calls.last().map(|(_, call)| *call);
        let location = PprofLocation {
            mapping_id: outermost.map_or(0, |call| self.mapping(call)),
            address: outermost.and_then(|call| call.offset).unwrap_or(0),
            line,
            ..PprofLocation::default()
        };
        let id = self.push_location(location);
        self.locations.insert(numbers, id);
        id
    }

    /// The location of a function without a place.
    fn bare_location(&mut self, name: &'static str) -> u64 {
        if let Some(id) = self.bare.get(name) {
            return *id;
        }
        let name_number = self.text(name);
        let line = PprofLine {
            function_id: self.function_by([name_number, 0, 0]),
            line: 0,
        };
        let id = self.push_location(PprofLocation {
            line: vec![line],
            ..PprofLocation::default()
        });
        self.bare.insert(name, id);
        id
    }

    fn push_location(&mut self, location: PprofLocation) -> u64 {
        let id = self.made.location.len() as u64 + 1;
        self.made.location.push(PprofLocation { id, ..location });
        id
    }

    fn function(&mut self, call: &'a ProfiledCall) -> u64 {
        let name = self.text(&call.name);
        // Go's reader takes a name that equals its system name for C++, and shortens
        // `<app::Guard as Drop>::drop` to `::drop`.
        let full_name = call.full_name.as_deref();
        let longer = full_name.filter(|full_name| **full_name != *call.name);
        let system_name = self.text(longer.unwrap_or_default());
        let filename = self.text(call.file.as_deref().unwrap_or_default());
        self.function_by([name, system_name, filename])
    }

    fn function_by(&mut self, names: [i64; 3]) -> u64 {
        let functions = &mut self.made.function;
        *self.functions.entry(names).or_insert_with(|| {
            let id = functions.len() as u64 + 1;
            let [name, system_name, filename] = names;
            functions.push(PprofFunction {
                id,
                name,
                system_name,
                filename,
            });
            id
        })
    }

    /// The mapping of the call's module, 0 for none.
    fn mapping(&mut self, call: &'a ProfiledCall) -> u64 {
        let Some(module) = &call.module else {
            return 0;
        };
        let filename = self.text(module);
        let build_id = self.text(call.build_id.as_deref().unwrap_or_default());
        let mappings = &mut self.made.mapping;
        *self
            .mappings
            .entry([filename, build_id])
            .or_insert_with(|| {
                let id = mappings.len() as u64 + 1;
                // All that can be known is in the file already: no tool has to look for the module.
                mappings.push(PprofMapping {
                    id,
                    filename,
                    build_id,
                    has_functions: true,
                    has_filenames: true,
                    has_line_numbers: true,
                    has_inline_frames: true,
                });
                id
            })
    }

    fn value_type(&mut self, kind: &'static str, unit: &'static str) -> PprofValueType {
        PprofValueType {
            kind: self.text(kind),
            unit: self.text(unit),
        }
    }

    fn text(&mut self, text: &'a str) -> i64 {
        let table = &mut self.made.string_table;
        *self.texts.entry(text).or_insert_with(|| {
            table.push(text.to_owned());
            table.len() as i64 - 1
        })
    }
}

fn nanoseconds(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::report::{Frame, Origin, Profile, StackSample, StallReport, example};
    use std::io::Read as _;

    fn decoded(profile: &Profile) -> PprofProfile {
        let file = profile.pprof();
        let mut bytes = Vec::new();
        let mut decoder = flate2::read::GzDecoder::new(&*file);
        decoder.read_to_end(&mut bytes).unwrap();
        PprofProfile::decode(&*bytes).unwrap()
    }

    fn frame(function: &str, line: u32, inlined: bool) -> Frame {
        Frame {
            file: Some("src/app.rs".to_owned()),
            line: Some(line),
            module: Some("app".to_owned()),
            inlined,
            ..Frame::of(function, Origin::Own)
        }
    }

    fn stack(count: u32, frames: Vec<Frame>) -> StackSample {
        StackSample {
            after: Duration::ZERO,
            count,
            frames,
            certain_frames: 1,
            complete: true,
            asleep: false,
        }
    }

    fn report(stacks: Vec<StackSample>) -> StallReport {
        StallReport {
            span: Some("request{id=7} > get".to_owned()),
            representative_stack: Some(0),
            duration: Duration::from_nanos(1_000_000_001),
            stacks,
            ..example()
        }
    }

    #[test]
    fn inlined_functions_are_lines_of_one_location() {
        let mut profile = Profile::default();
        let inner = frame("app::inner::<u8>", 3, true);
        profile.add(&report(vec![stack(
            1,
            vec![inner, frame("app::outer", 9, false)],
        )]));
        let made = decoded(&profile);
        let text = |number: i64| &*made.string_table[number as usize];
        assert_eq!(made.location.len(), 1);
        let lines = made.location[0].line.iter().map(|line| {
            let function = &made.function[line.function_id as usize - 1];
            (text(function.name), text(function.system_name), line.line)
        });
        let expected = [("app::inner", "app::inner::<u8>", 3), ("app::outer", "", 9)];
        assert_eq!(lines.collect::<Vec<_>>(), expected);
        let labels = made.sample[0].label.iter();
        let labels: Vec<_> = labels
            .map(|label| (text(label.key), text(label.str)))
            .collect();
        let expected = [
            ("runtime", "api"),
            ("span", "request > get"),
            ("cause", "blocked/sleep"),
        ];
        assert_eq!(labels, expected);
        assert_eq!(text(made.default_sample_type), "lost");
        assert_eq!(text(made.mapping[0].filename), "app");
    }

    #[test]
    fn values_add_up_to_all_stalls_and_all_time() {
        let mut profile = Profile::default();
        let stacks = (1..=3).map(|n| stack(n, vec![frame("app::f", n, false)]));
        profile.add(&report(stacks.collect()));
        profile.add(&report(Vec::new()));
        let made = decoded(&profile);
        assert_eq!(made.sample.len(), 4);
        let sum = |at: usize| -> i64 { made.sample.iter().map(|sample| sample.value[at]).sum() };
        assert_eq!((sum(0), sum(1)), (2, 2_000_000_002));
        let names = made.string_table.iter();
        assert_eq!(names.filter(|name| *name == NO_STACK).count(), 1);
    }
}
