//! Names for addresses: from debug information where there is some, else from the symbol table.
//!
//! *Runs on:* whichever thread explains a stack; see the parent module.
//! *Here:* may read files and take long the first time: a program's debug information is large.

use super::unwind::{Read, Unwinder};
use crate::capture::Mapped;
use crate::explain::own_code::OwnCode;
use crate::report::Frame;
use addr2line::Loader;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Addresses whose names are kept. A stack has some thirty, most of them the same as the last one's.
const ADDRESSES: usize = 4096;

/// Names addresses, and remembers.
#[derive(Default)]
pub(crate) struct Symbols {
    /// By identity of the file. `None` for those that cannot be read.
    loaders: HashMap<u64, Option<Loader>>,
    /// By identity of the file and address in it.
    named: HashMap<(u64, u64), Arc<[Named]>>,
}

impl Symbols {
    /// The frames at an address, innermost first: more than one if functions were inlined.
    ///
    /// # Cost
    ///
    /// A look-up in a table for an address named before; else reads debug information: some 10 to 100 µs,
    /// and once per module and minute of silence some 100 ms.
    pub(crate) fn frames(&mut self, address: u64, unwinder: &Unwinder) -> Arc<[Named]> {
        let Some((file, read)) = unwinder.module_of(address) else {
            return [Named::nameless(address, None)].into();
        };
        let Key(identity, in_file) = Key::of(address, file, read);
        if let Some(known) = self.named.get(&(identity, in_file)) {
            return known.clone();
        }
        let loader = self
            .loaders
            .entry(identity)
            .or_insert_with(|| Loader::new(file.file()?).ok());
        let module = Path::new(&file.path)
            .file_name()
            .map_or(file.path.clone(), |name| {
                name.to_string_lossy().into_owned()
            });
        let module = Module {
            in_program: file.program,
            name: module,
            build_id: read.and_then(|read| read.build_id.clone()),
            function: read.and_then(|read| read.function_at(in_file)),
        };
        let named: Arc<[Named]> = name(loader.as_ref(), in_file, &module).into();
        if self.named.len() >= ADDRESSES {
            self.named.clear();
        }
        self.named.insert((identity, in_file), named.clone());
        named
    }

    /// Lets go of the debug information, but not of the names found in it, where a build id tells that they
    /// are still the right ones.
    pub(crate) fn forget_files(&mut self) {
        self.loaders.clear();
        self.named
            .retain(|_, named| named.iter().all(|named| named.build_id.is_some()));
    }
}

/// The identity of a file, and an address in it.
struct Key(u64, u64);

impl Key {
    fn of(address: u64, file: &Mapped, read: Option<&Read>) -> Key {
        let build_id = read.and_then(|read| read.build_id.as_deref());
        let bias = read.map_or(file.range.start, |read| read.bias);
        Key(file.identity(build_id), address.wrapping_sub(bias))
    }
}

/// What is known of the file that an address is in.
struct Module {
    name: String,
    build_id: Option<String>,
    in_program: bool,
    /// The function's addresses in the file, by the unwind tables.
    function: Option<Range<u64>>,
}

fn name(loader: Option<&Loader>, address: u64, module: &Module) -> Vec<Named> {
    let mut frames = Vec::new();
    let Some(loader) = loader else {
        return vec![Named::nameless(address, Some(module))];
    };
    // Where local symbols have been stripped, the nearest one is another function's.
    let symbol = || {
        let symbol = loader.find_symbol_info(address)?;
        let function = module.function.as_ref()?;
        function
            .contains(&symbol.address())
            .then(|| demangled(symbol.name()))
    };
    if let Ok(mut found) = loader.find_frames(address) {
        while let Ok(Some(frame)) = found.next() {
            let name = frame
                .function
                .as_ref()
                .and_then(|function| function.raw_name().ok())
                .map(|name| demangled(&name));
            let location = frame.location.as_ref();
            frames.push(Named {
                function: name,
                file: location.and_then(|place| place.file).map(str::to_owned),
                line: location.and_then(|place| place.line),
                inlined: true,
                ..Named::nameless(address, Some(module))
            });
        }
    }
    match frames.last_mut() {
        None => frames.push(Named {
            function: symbol(),
            ..Named::nameless(address, Some(module))
        }),
        Some(outermost) => {
            outermost.inlined = false;
            // Little debug information names functions without their path, which the symbol has.
            let has_path = |name: &String| name.contains("::");
            if !outermost.function.as_ref().is_some_and(has_path) {
                outermost.function = symbol().or(outermost.function.take());
            }
        }
    }
    frames
}

/// A frame, but for whose code it is: that depends on who asks.
pub(crate) struct Named {
    function: Option<String>,
    file: Option<String>,
    line: Option<u32>,
    module: Option<String>,
    offset: u64,
    build_id: Option<String>,
    in_program: bool,
    inlined: bool,
}

impl Named {
    fn nameless(address: u64, module: Option<&Module>) -> Named {
        Named {
            function: None,
            file: None,
            line: None,
            module: module.map(|module| module.name.clone()),
            offset: address,
            build_id: module.and_then(|module| module.build_id.clone()),
            in_program: module.is_some_and(|module| module.in_program),
            inlined: false,
        }
    }

    /// The frame, for whoever has these crates.
    pub(crate) fn frame(&self, own: &OwnCode) -> Frame {
        let (function, file) = (self.function.as_deref(), self.file.as_deref());
        Frame {
            function: self.function.clone(),
            file: self.file.clone(),
            line: self.line,
            module: self.module.clone(),
            offset: self.offset,
            build_id: self.build_id.clone(),
            origin: own.origin(function, file, self.in_program),
            inlined: self.inlined,
        }
    }
}

/// Rust names without the hash; others as they are.
fn demangled(name: &str) -> String {
    match rustc_demangle::try_demangle(name) {
        Ok(name) => format!("{name:#}"),
        // glibc tells versions of a function apart by what follows an "@".
        Err(_) => name.split('@').next().unwrap_or(name).to_owned(),
    }
}
