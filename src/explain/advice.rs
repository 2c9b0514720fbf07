//! What to write instead: a catalogue of the usual ways to hold a worker.
//!
//! *Runs on:* the reporter thread.
//! *Here:* a table and the comparing of names. Nothing is known about the user's code; what it calls says
//! what it does. The first rule that matches has the word, so the order is part of the knowledge.

use crate::report::{Blocking, Cause, Frame, Origin};
use std::borrow::Cow;

/// One sentence that says what to write instead, or what to do about the host.
///
/// `frames` go from the thread's innermost frame outwards to the code that is held responsible, and
/// `call` is the system call slept in. `None` if the cause is unknown and nothing in the stack is known
/// to be trouble.
pub(crate) fn advise(frames: &[Frame], cause: Cause, call: Option<&str>) -> Option<&'static str> {
    let paths: Vec<Path<'_>> = frames.iter().flat_map(paths_of).collect();
    CATALOGUE
        .iter()
        .find(|rule| rule.matches(&paths, cause, call))
        .map(|rule| rule.advice)
}

struct Rule {
    when: When,
    /// Any of these between the innermost frame and the code held responsible; empty for whatever code.
    ///
    /// Each is the beginning of a path: `rusqlite` is everything in that crate. The segment `*` is any
    /// number of segments, and one that ends in `*` is all that begin like it. A path of one segment may
    /// as well be a function of C, written without the underscores in front.
    functions: &'static str,
    /// Any of these system calls; empty for all, and for none.
    calls: &'static [&'static str],
    advice: &'static str,
}

/// The causes that a rule is for. Where nothing is known of the cause, the functions alone decide.
#[derive(Clone, Copy)]
enum When {
    Only(Cause),
    /// Whatever the code does.
    Code,
    Computing,
    Waiting,
    /// Waiting for certain. For what also runs without ever waiting, as sockets do under tokio.
    Asleep,
}

impl When {
    fn covers(self, cause: Cause) -> bool {
        match (self, cause) {
            (When::Only(only), cause) => only == cause,
            (When::Code, Cause::Cpu | Cause::Blocked(_) | Cause::Unknown)
            | (When::Computing, Cause::Cpu | Cause::Unknown)
            | (When::Waiting, Cause::Blocked(_) | Cause::Unknown)
            | (When::Asleep, Cause::Blocked(_)) => true,
            _ => false,
        }
    }
}

impl Rule {
    const fn calling(functions: &'static str, when: When, advice: &'static str) -> Rule {
        Rule {
            when,
            functions,
            calls: &[],
            advice,
        }
    }

    const fn anything(when: When, advice: &'static str) -> Rule {
        Rule::calling("", when, advice)
    }

    fn patterns(&self) -> impl Iterator<Item = &'static str> {
        self.functions.split_ascii_whitespace()
    }

    fn matches(&self, paths: &[Path<'_>], cause: Cause, call: Option<&str>) -> bool {
        let called = |pattern: &str| {
            let pattern: Vec<&str> = pattern.split("::").collect();
            paths.iter().any(|path| begins(path, &pattern))
        };
        self.when.covers(cause)
            && (self.calls.is_empty() || call.is_some_and(|call| self.calls.contains(&call)))
            && (self.functions.is_empty() || self.patterns().any(called))
    }
}

const SLEEP: &str =
    "Sleep with `tokio::time::sleep(…).await`, which leaves the worker to other tasks.";
const FILE: &str = "Use `tokio::fs`, or do all of the file work in one `spawn_blocking`.";
const NETWORK: &str =
    "Use the sockets of `tokio::net`, or do the whole exchange in `spawn_blocking`.";
const PROCESS: &str = "Start the process with `tokio::process`, and await its end and its output.";
const BLOCK_ON: &str = "Await the future instead of calling `block_on` inside async code.";

/// Most specific first. What a crate waits in is no news once the crate is known, so crates come before
/// the standard library, and the standard library before what can be told from the cause alone.
const CATALOGUE: &[Rule] = &[
    // The host's doing: the code is not to blame.
    Rule::anything(
        When::Only(Cause::Contention),
        "Give the process more CPU, or take other work off this machine: the code was ready to run.",
    ),
    Rule::anything(
        When::Only(Cause::Throttled),
        "Look at the CPU limit of the container or control group: the code waited because it was used up.",
    ),
    Rule::anything(
        When::Only(Cause::Suspended),
        "Leave the code as it is: the whole process stood still, as if stopped, suspended or migrated.",
    ),
    // A panic or an error with a backtrace looks up the symbols of all its frames.
    Rule::calling(
        "backtrace std::backtrace std::backtrace_rs",
        When::Code,
        "Leave `RUST_BACKTRACE` unset, or make no backtraces here: looking up their symbols is slow.",
    ),
    // Logging before the rest, for everything else logs, too. A queue that may not overflow can be full.
    Rule::calling(
        "tracing_appender::non_blocking",
        When::Waiting,
        "Let the log drop lines while its queue is full (`lossy(true)`), or give the queue more room.",
    ),
    Rule::calling(
        "log tracing_appender::rolling tracing_core::event \
         tracing_core::subscriber::Subscriber::event tracing_journald tracing_subscriber::fmt \
         env_logger fern flexi_logger log4rs simplelog slog slog_term std::io::stdio::_eprint \
         std::io::stdio::_print std::io::stdio::Stderr* std::io::stdio::Stdout* \
         std::io::stdio::print* std::sys::stdio::*::Stderr std::sys::stdio::*::Stdout",
        When::Waiting,
        "Log and print through a non-blocking writer, such as `tracing_appender::non_blocking`.",
    ),
    // A pool before its database: it is also in the stack while it tests a connection.
    Rule::calling(
        "r2d2",
        When::Waiting,
        "Use an async pool such as `bb8` or `deadpool`, or get the connection in `spawn_blocking`.",
    ),
    Rule::calling(
        "diesel duckdb fjall heed libsqlite3_sys librocksdb_sys lmdb mongodb::sync mysql \
         odbc_api oracle postgres pq_sys redb redis::client::Client::get_connection* \
         redis::cmd::Cmd::exec redis::cmd::Cmd::query redis::commands::Commands \
         redis::connection rocksdb rusqlite sled sqlite PQ* mdb_* mysql_* rocksdb_* sqlite3*",
        When::Code,
        "Use an async database client, or do all of the database work in `spawn_blocking`.",
    ),
    Rule::calling(
        "attohttpc curl http_req isahc minreq reqwest::blocking ureq ureq_proto curl_*",
        When::Waiting,
        "Use an async HTTP client such as `reqwest` or `hyper`, or send the request in `spawn_blocking`.",
    ),
    Rule::calling(
        "rayon_core",
        When::Waiting,
        "Start the work with `rayon::spawn`, and await a `tokio::sync::oneshot` for its result.",
    ),
    Rule::calling(
        "async_io::driver::block_on async_std::task::*::block_on futures_executor \
         futures_lite::future::block_on pollster smol::block_on tokio::future::block_on \
         tokio::runtime::*::block_on tokio::task::*::block_on tokio_test::block_on",
        When::Waiting,
        BLOCK_ON,
    ),
    Rule::calling(
        "std::io::stdio::Stdin* std::sys::stdio::*::Stdin",
        When::Waiting,
        "Read standard input through `tokio::io::stdin`, or on a thread of its own.",
    ),
    // Here tokio itself forks, which takes long in a large process.
    Rule::calling(
        "tokio::process",
        When::Code,
        "Start the process in `spawn_blocking`: to start one is itself a call that blocks.",
    ),
    Rule::calling(
        "std::process std::sys::process duct posix_spawn* waitpid",
        When::Code,
        PROCESS,
    ),
    // The ways to wait for another thread. Channels park, and condition variables lock again.
    Rule::calling(
        "std::sync::mpmc std::sync::mpsc async_channel crossbeam_channel flume kanal",
        When::Waiting,
        "Use a channel that can be awaited, such as `tokio::sync::mpsc`.",
    ),
    Rule::calling(
        "std::sync::*::barrier std::sync::*::condvar std::sys::sync::condvar \
         parking_lot::condvar crossbeam_utils::sync::wait_group pthread_cond_*",
        When::Waiting,
        "Await a `tokio::sync::Notify` or `Barrier` instead of putting the thread to sleep.",
    ),
    Rule::calling(
        "std::sync::*::mutex std::sync::*::rwlock std::sync::reentrant_lock \
         std::sys::sync::mutex std::sys::sync::rwlock dashmap lock_api \
         parking_lot::*::raw_mutex parking_lot::*::raw_rwlock pthread_mutex_lock \
         pthread_rwlock_*",
        When::Waiting,
        "Have every holder keep to a shorter critical section, or await a lock of `tokio::sync`.",
    ),
    // What fills the cell runs inside it, too; only the wait for somebody else's filling is this.
    Rule::calling(
        "std::sync::*::once std::sync::once_lock std::sync::lazy_lock std::sys::sync::once \
         once_cell",
        When::Only(Cause::Blocked(Blocking::Lock)),
        "Fill the cell before the runtime starts, or await a `tokio::sync::OnceCell`.",
    ),
    Rule::calling(
        "std::thread::*::join std::thread::*::park* std::thread::scoped \
         std::sys::thread::*::join crossbeam_utils::sync::parker crossbeam_utils::thread \
         pthread_clockjoin_ex pthread_join",
        When::Waiting,
        "Await a `tokio::sync::oneshot` from the other thread, or wait for it in `spawn_blocking`.",
    ),
    Rule::calling(
        "std::thread::*::sleep* std::sys::thread::*::sleep* clock_nanosleep nanosleep sleep \
         usleep",
        When::Code,
        SLEEP,
    ),
    Rule::calling(
        "dns_lookup std::net::*::ToSocketAddrs std::net::*::to_socket_addrs \
         std::sys::net::*::LookupHost std::sys::net::*::lookup_host getaddrinfo gethostbyname*",
        When::Waiting,
        "Look the name up with `tokio::net::lookup_host`, or in `spawn_blocking`.",
    ),
    Rule::calling(
        "std::net std::os::unix::net std::sys::net",
        When::Asleep,
        NETWORK,
    ),
    // Computing. It also happens on top of files and sockets, which have their say only while waiting.
    Rule::calling(
        "argon2* aws_lc_rs::pbkdf2 balloon_hash bcrypt openssl::pkcs5 password_auth \
         password_hash pbkdf2 ring::pbkdf2 scrypt",
        When::Code,
        "Password hashes are made to be slow: compute them in `spawn_blocking`.",
    ),
    Rule::calling(
        "jiter json serde_json simd_json sonic_rs",
        When::Computing,
        "Stream or paginate large JSON, or convert it in `spawn_blocking`.",
    ),
    Rule::calling(
        "bincode borsh bson calamine ciborium csv csv_core postcard prost protobuf quick_xml \
         rkyv rmp rmp_serde ron roxmltree serde_yaml serde_yml toml toml_edit xml",
        When::Computing,
        "Split up the serialising and parsing of large data, or do it in `spawn_blocking`.",
    ),
    // The format itself has been inlined.
    Rule::calling(
        "serde serde_core",
        When::Computing,
        "Stream or paginate large data (JSON or other), or do the serialising in `spawn_blocking`.",
    ),
    Rule::calling(
        "exr fast_image_resize gif image image_webp imageproc jpeg_decoder png ravif resvg tiff \
         tiny_skia webp zune_jpeg zune_png",
        When::Computing,
        "Work on images in `spawn_blocking`, or on rayon with a `oneshot` for the result.",
    ),
    Rule::calling(
        "brotli brotli_decompressor bzip2 flate2 libdeflater libz_rs_sys lz4 lz4_flex lzma_rs \
         miniz_oxide ruzstd snap xz2 zip zlib_rs zopfli zstd zstd_safe BZ2_* Brotli* LZ4_* \
         ZSTD_* deflate* inflate* libdeflate_* lzma_*",
        When::Computing,
        "Compress and decompress in `spawn_blocking`, or on rayon with a `oneshot` for the result.",
    ),
    Rule::calling(
        "aho_corasick fancy_regex onig pcre2 regex regex_automata regex_lite regex_syntax \
         pcre2_*",
        When::Computing,
        "Compile each regex once, and search long texts in `spawn_blocking` or on rayon with a `oneshot`.",
    ),
    Rule::calling(
        "aes aes_gcm aws_lc_rs aws_lc_sys chacha20poly1305 crypto_bigint curve25519_dalek ecdsa \
         ed25519_dalek elliptic_curve k256 num_bigint_dig openssl p256 p384 ring rsa \
         x25519_dalek BN_* EVP_* RSA_* aws_lc_* ring_core_*",
        When::Computing,
        "Do costly cryptography in `spawn_blocking`, or on rayon with a `oneshot` for the result.",
    ),
    Rule::calling(
        "blake2 blake3 crc crc32fast digest hmac md5 md_5 sha1 sha2 sha3 tiger twox_hash \
         whirlpool xxhash_rust blake3_*",
        When::Computing,
        "Hash large data in `spawn_blocking`, or on rayon with a `oneshot` for the result.",
    ),
    // Files cost time on a CPU as well, when they are in memory.
    Rule::calling(
        "std::fs std::sys::fs fs_err glob memmap2 tempfile walkdir fdatasync fsync open open64 \
         openat sync_file_range",
        When::Code,
        FILE,
    ),
    Rule::calling(
        "core::mem::drop core::ops::drop::Drop core::ptr::*::drop_in_place core::ptr::drop_glue \
         alloc::rc::*::drop_slow alloc::sync::*::drop_slow hashbrown::raw::*::drop_elements \
         hashbrown::raw::*::drop_inner_table __rustc::__rust_dealloc cfree free int_free \
         mi_free rjem_sdallocx rust_dealloc",
        When::Only(Cause::Cpu),
        "If what is freed here is large, drop it in `spawn_blocking` or on another thread.",
    ),
    // What the cause alone tells.
    Rule {
        when: When::Asleep,
        functions: "",
        // An event loop waits in these, and here it is one inside of a poll.
        calls: &["epoll_pwait", "epoll_pwait2", "epoll_wait"],
        advice: BLOCK_ON,
    },
    Rule::anything(When::Only(Cause::Blocked(Blocking::Sleep)), SLEEP),
    Rule::anything(When::Only(Cause::Blocked(Blocking::File)), FILE),
    Rule::anything(When::Only(Cause::Blocked(Blocking::Network)), NETWORK),
    Rule::anything(When::Only(Cause::Blocked(Blocking::Process)), PROCESS),
    Rule::anything(
        When::Only(Cause::Blocked(Blocking::Lock)),
        "Await a lock, channel or `Notify` of `tokio::sync` instead of putting the thread to sleep.",
    ),
    Rule::anything(
        When::Asleep,
        "Use an async counterpart of the blocking call, or make the call in `spawn_blocking`.",
    ),
    Rule::anything(
        When::Only(Cause::Cpu),
        "Move the computation to `spawn_blocking` or rayon, or split it up with `yield_now().await`.",
    ),
];

/// The segments of a path, without generic arguments.
type Path<'a> = Vec<Cow<'a, str>>;

/// Whether the path begins with the pattern.
fn begins(path: &[Cow<'_, str>], pattern: &[&str]) -> bool {
    let Some((first, rest)) = pattern.split_first() else {
        return true;
    };
    if *first == "*" {
        return (0..=path.len()).any(|skipped| begins(&path[skipped..], rest));
    }
    let Some((segment, path)) = path.split_first() else {
        return false;
    };
    let same = match first.strip_suffix('*') {
        Some(beginning) => segment.starts_with(beginning),
        None => segment == first,
    };
    same && begins(path, rest)
}

/// All paths by which the catalogue may know a frame: by its name, and by the place of its source.
fn paths_of(frame: &Frame) -> Vec<Path<'_>> {
    let Some(name) = frame.function.as_deref() else {
        return Vec::new();
    };
    match frame.origin {
        Origin::Detector => return Vec::new(),
        // The user's crate may be called as one in the catalogue. Only the traits it implements tell.
        Origin::Own => return paths_in(name, true),
        _ => {}
    }
    let file = frame.file.as_deref().filter(|file| file.ends_with(".rs"));
    // Debug information that has only line numbers gives bare names, and the file tells the rest.
    let bare = split(name, "::").len() == 1 && !name.starts_with('<');
    let mut paths = match (bare, file) {
        (false, _) => paths_in(name, false),
        (true, None) => vec![vec![Cow::Borrowed(c_symbol(name))]],
        (true, Some(_)) => Vec::new(),
    };
    paths.extend(file.and_then(|file| path_in_source(file, name)));
    paths
}

/// The paths in a demangled name: of `<std::fs::File as std::io::Write>::write` both
/// `std::fs::File::write` and `std::io::Write::write`; of an own name only those of traits.
///
/// Generic arguments are left out: what is handed over is not what is called.
fn paths_in(name: &str, own: bool) -> Vec<Path<'_>> {
    let mut paths = if own { vec![] } else { vec![vec![]] };
    for (number, segment) in split(name, "::").into_iter().enumerate() {
        match qualified(segment) {
            Some((of_type, of_trait)) if number == 0 || segment.starts_with("<impl ") => {
                let of_type = Some(of_type).filter(|_| !own).map(without_sigils);
                let both = of_type.into_iter().chain(of_trait);
                paths.extend(both.flat_map(|path| paths_in(path, false)));
                paths.retain(|path| !path.is_empty());
            }
            Some(_) => {}
            None => {
                let segment = Cow::Borrowed(identifier(segment));
                paths.iter_mut().for_each(|path| path.push(segment.clone()));
            }
        }
    }
    paths
}

/// The type and the trait of `<Type>`, `<Type as Trait>` and, in older names, `<impl Trait for Type>`.
fn qualified(segment: &str) -> Option<(&str, Option<&str>)> {
    let inner = segment.strip_prefix('<')?;
    let inner = inner.strip_suffix('>').unwrap_or(inner);
    let (parts, trait_comes_first) = match inner.strip_prefix("impl ") {
        Some(inner) => (split(inner, " for "), true),
        None => (split(inner, " as "), false),
    };
    match *parts.as_slice() {
        [of_trait, of_type, ..] if trait_comes_first => Some((of_type, Some(of_trait))),
        [of_type, of_trait, ..] => Some((of_type, Some(of_trait))),
        [of_type] => Some((of_type, None)),
        [] => None,
    }
}

/// `…/serde_json-1.0.154/src/ser.rs` is `serde_json::ser`, `…/library/std/src/io/mod.rs` is `std::io`.
fn path_in_source<'a>(file: &'a str, name: &'a str) -> Option<Path<'a>> {
    let (package, module) = file.strip_suffix(".rs")?.rsplit_once("/src/")?;
    let package = package.rsplit('/').next()?;
    let is_version = |text: &str| {
        text.trim_start_matches(|c: char| c.is_ascii_digit())
            .starts_with('.')
    };
    let version = package
        .match_indices('-')
        .find(|(at, _)| is_version(&package[at + 1..]));
    let package = version.map_or(package, |(at, _)| &package[..at]);

    let mut path = vec![Cow::Owned(package.replace('-', "_"))];
    path.extend(
        module
            .split('/')
            .filter(|part| !matches!(*part, "lib" | "mod"))
            .map(Cow::Borrowed),
    );
    let function = split(name, "::")
        .into_iter()
        .rfind(|segment| !segment.starts_with('<'))?;
    path.push(Cow::Borrowed(identifier(function)));
    Some(path)
}

/// `__GI___libc_free` and `free@GLIBC_2.2.5` are `free`.
fn c_symbol(name: &str) -> &str {
    let name = name.split(['@', '.']).next().unwrap_or(name);
    ["GI_", "libc_"]
        .iter()
        .fold(name.trim_start_matches('_'), |name, prefix| {
            let name = name.strip_prefix(prefix).unwrap_or(name);
            name.trim_start_matches('_')
        })
}

/// A segment without what follows the identifier: generic arguments, parameters of C++, a crate's hash.
fn identifier(segment: &str) -> &str {
    segment.split(['<', '(', '[']).next().unwrap_or(segment)
}

/// A type without what says that it is a reference, a slice and the like.
fn without_sigils(mut path: &str) -> &str {
    const SIGILS: &[&str] = &["&", "*const ", "*mut ", "mut ", "dyn ", "[", "("];
    while let Some(rest) = SIGILS.iter().find_map(|sigil| path.strip_prefix(sigil)) {
        path = rest;
    }
    path
}

/// Splits at the separators that are not in brackets of any kind.
fn split<'a>(text: &'a str, separator: &str) -> Vec<&'a str> {
    let mut parts = Vec::new();
    let (mut depth, mut from, mut before) = (0_usize, 0, b' ');
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'<' | b'(' | b'[' | b'{' => depth += 1,
            // The arrow of a function's type closes nothing.
            b'>' if before == b'-' => {}
            b'>' | b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ if depth == 0
                && at >= from
                && text.as_bytes()[at..].starts_with(separator.as_bytes()) =>
            {
                parts.push(&text[from..at]);
                from = at + separator.len();
            }
            _ => {}
        }
        before = byte;
    }
    parts.push(&text[from..]);
    parts
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const CPU: Cause = Cause::Cpu;
    const SLEEP: Cause = Cause::Blocked(Blocking::Sleep);
    const LOCK: Cause = Cause::Blocked(Blocking::Lock);
    const FILE: Cause = Cause::Blocked(Blocking::File);
    const NETWORK: Cause = Cause::Blocked(Blocking::Network);
    const PROCESS: Cause = Cause::Blocked(Blocking::Process);
    const OTHER: Cause = Cause::Blocked(Blocking::Other);

    fn frame(function: &str) -> Frame {
        let own = function.starts_with("app::") || function.starts_with("<app::");
        Frame {
            function: Some(function.to_owned()),
            file: None,
            line: None,
            module: None,
            offset: 0,
            build_id: None,
            origin: if own { Origin::Own } else { Origin::Std },
            inlined: false,
        }
    }

    fn frame_in(file: &str, function: &str) -> Frame {
        Frame {
            file: Some(file.to_owned()),
            ..frame(function)
        }
    }

    /// The advice for `innermost ← caller ← its caller`, below which is the handler.
    fn told(cause: Cause, call: &str, stack: &str) -> &'static str {
        let handler = "app::orders::handler::{{closure}}";
        let stack = stack.split(" ← ").chain([handler]);
        let frames: Vec<Frame> = stack.map(frame).collect();
        advise(&frames, cause, Some(call)).unwrap_or("nothing")
    }

    /// Each of these stacks gets advice with all these words in it.
    #[track_caller]
    fn all_told(words: &[&str], cause: Cause, call: &str, stacks: &[&str]) {
        for stack in stacks {
            let told = told(cause, call, stack);
            for words in words {
                assert!(told.contains(words), "{words:?} for {stack}, not {told:?}");
            }
        }
    }

    #[test]
    fn a_sleep_is_told_to_sleep_asynchronously() {
        let right = ["`tokio::time::sleep(…).await`"];
        all_told(
            &right,
            SLEEP,
            "clock_nanosleep",
            &[
                "__GI___clock_nanosleep ← std::sys::thread::unix::sleep ← std::thread::sleep",
                "clock_nanosleep@@GLIBC_2.17 ← std::sys::pal::unix::thread::Thread::sleep",
                "<std::sys::pal::unix::thread::Thread>::sleep",
                "__nanosleep ← std::thread::sleep_ms::h0123456789abcdef",
                "usleep",
                "?",
            ],
        );
        // Where the kernel does not tell the cause.
        all_told(&right, Cause::Unknown, "", &["std::thread::sleep"]);
    }

    #[test]
    fn file_work_is_told_to_go_elsewhere_whether_it_waits_or_computes() {
        let right = ["`tokio::fs`", "`spawn_blocking`"];
        all_told(
            &right,
            FILE,
            "read",
            &[
                "__libc_open64 ← std::sys::pal::unix::fs::File::open_c ← std::fs::read",
                "__GI_fsync ← <std::fs::File>::sync_all",
                "?",
            ],
        );
        all_told(&right, OTHER, "", &["fsync ← save_all"]);
        all_told(
            &right,
            CPU,
            "",
            &[
                "__GI___libc_write ← <std::fs::File as std::io::Write>::write",
                "<std::sys::fs::unix::File>::write",
                "std::fs::read::inner ← std::fs::read",
            ],
        );
    }

    #[test]
    fn sockets_and_names_are_told_the_ones_of_tokio() {
        all_told(
            &["`tokio::net`"],
            NETWORK,
            "recvfrom",
            &[
                "__libc_recv ← <&std::net::tcp::TcpStream as std::io::Read>::read",
                "<std::sys::net::connection::socket::unix::Socket>::recv_with_flags",
                "std::os::unix::net::stream::UnixStream::connect",
                "?",
            ],
        );
        all_told(
            &["`tokio::net::lookup_host`"],
            OTHER,
            "poll",
            &[
                "__poll ← __GI_getaddrinfo ← std::net::each_addr",
                "<std::sys::net::connection::socket::LookupHost as core::convert::TryFrom<&str>>::try_from",
                "<(&str,u16) as std::net::socket_addr::ToSocketAddrs>::to_socket_addrs",
            ],
        );
        // Tokio's sockets are those of `std`. They never wait, but they take time on a CPU.
        let busy = "<&std::net::tcp::TcpStream as std::io::Write>::write ← mio::net::tcp";
        all_told(&["yield_now"], CPU, "", &[busy]);
    }

    #[test]
    fn a_blocking_http_client_is_known_whatever_it_waits_in() {
        all_told(
            &["async HTTP client", "`spawn_blocking`"],
            NETWORK,
            "recvfrom",
            &[
                "__libc_recv ← <&std::net::tcp::TcpStream as std::io::Read>::read ← ureq::run::run",
                "<ureq::transport::TcpTransport as ureq::transport::Transport>::await_input",
                "__GI_getaddrinfo ← ureq::unversioned::resolver::DefaultResolver::resolve",
                "std::thread::park_timeout ← reqwest::blocking::wait::timeout",
                "std::thread::sleep ← ureq::pool::retry",
                "futures_lite::future::block_on ← isahc::client::HttpClient::send",
                "__poll ← curl_multi_poll ← curl_easy_perform",
                "minreq::connection::Connection::send",
                "<attohttpc::request::PreparedRequest<B>>::send",
            ],
        );
        // An async client in `block_on` is one already.
        let inside =
            "futures_executor::local_pool::block_on ← reqwest::async_impl::client::execute";
        all_told(&["`block_on`"], LOCK, "futex", &[inside]);
    }

    #[test]
    fn a_blocking_database_client_is_known_whatever_it_does() {
        let right = ["database", "`spawn_blocking`"];
        all_told(
            &right,
            CPU,
            "",
            &[
                "sqlite3VdbeExec ← sqlite3_step ← rusqlite::statement::Statement::step",
                "__GI___libc_malloc ← sqlite3MemMalloc ← sqlite3VdbeExec",
                "_int_free ← <rusqlite::Statement as core::ops::drop::Drop>::drop",
            ],
        );
        all_told(
            &right,
            FILE,
            "fsync",
            &[
                "__GI_fsync ← full_fsync ← unixSync ← sqlite3OsSync ← sqlite3_step",
                "fsync ← <rusqlite::Connection>::execute::<[i32; 1]>",
                "rocksdb::DBImpl::Get(rocksdb::ReadOptions const&, rocksdb::Slice*) ← rocksdb_get",
            ],
        );
        all_told(
            &right,
            NETWORK,
            "poll",
            &[
                "tokio::runtime::runtime::Runtime::block_on ← postgres::client::Client::query",
                "__poll ← pqSocketPoll ← PQgetResult",
                "<diesel::pg::PgConnection as diesel::connection::LoadConnection>::load",
                "mysql::conn::Conn::query",
                "redis::connection::Connection::read ← redis::cmd::Cmd::query",
            ],
        );
        all_told(
            &right,
            LOCK,
            "futex",
            &["<sled::Tree>::insert::<&[u8], u8>"],
        );
        let busy_handler = "nanosleep ← unixSleep ← sqliteDefaultBusyCallback ← sqlite3_step";
        all_told(&right, SLEEP, "clock_nanosleep", &[busy_handler]);

        let not_blocking = [
            "redis::cmd::Cmd::query_async",
            "tokio_postgres::client::Client::query",
        ];
        all_told(&["yield_now"], CPU, "", &not_blocking);
    }

    #[test]
    fn waiting_for_a_pool_is_not_waiting_for_a_condition() {
        let waits = [
            "parking_lot::condvar::Condvar::wait_until_internal ← r2d2::Pool<M>::get_timeout",
            "syscall ← <r2d2::Pool<r2d2_sqlite::SqliteConnectionManager>>::get",
        ];
        all_told(&["async pool", "`spawn_blocking`"], LOCK, "futex", &waits);
        let connects = "sqlite3_step ← rusqlite::Connection::execute_batch ← r2d2::Pool<M>::get";
        all_told(&["database"], CPU, "", &[connects]);
    }

    #[test]
    fn password_hashes_come_before_the_hashes_they_are_made_of() {
        for stack in [
            "sha2::sha256::compress256 ← hmac::block_api::HmacCore<D> ← pbkdf2::pbkdf2_hmac",
            "<argon2::Argon2>::fill_blocks",
            "argon2id_hash_raw",
            "bcrypt::bcrypt::bcrypt",
            "salsa20::xor ← scrypt::romix::scrypt_ro_mix",
            "ring::pbkdf2::derive",
        ] {
            let told = told(CPU, "", stack);
            assert!(told.starts_with("Password"), "{stack}: {told}");
            assert!(told.contains("`spawn_blocking`"), "{stack}: {told}");
        }
    }

    #[test]
    fn computing_is_told_apart_by_the_crate_that_does_it() {
        for (words, stacks) in [
            (
                "Compress",
                &[
                    "flate2::zio::Writer<W,D>::write_with_status",
                    "miniz_oxide::deflate::core::compress_normal",
                    "<brotli::enc::encode::BrotliEncoderStateStruct<A>>::compress_stream",
                    "ZSTD_compressBlock_doubleFast",
                    "inflate_fast",
                ][..],
            ),
            (
                "images",
                &[
                    "miniz_oxide::inflate::core::decompress ← png::decoder::zlib",
                    "<image::imageops::sample::Lanczos3>::resize",
                ],
            ),
            (
                "regex",
                &[
                    "<regex::regex::string::Regex>::new",
                    "regex_automata::nfa::thompson::compiler::Compiler::c_cap",
                ],
            ),
            (
                "cryptography",
                &[
                    "rsa::algorithms::rsa::rsa_decrypt",
                    "ring::rsa::keypair::KeyPair::sign",
                    "aws_lc_0_32_3_bn_mul_mont",
                ],
            ),
            (
                "Hash",
                &["sha2::sha256::x86::digest_blocks", "blake3_hash_many_avx2"],
            ),
            (
                "serialising",
                &[
                    "<quick_xml::de::Deserializer<R> as serde::de::Deserializer>::deserialize_map",
                    "<app::Order as prost::message::Message>::encode_raw",
                    "app::_::<impl serde_core::ser::Serialize for app::Order>::serialize",
                ],
            ),
        ] {
            all_told(&[words, "`spawn_blocking`"], CPU, "", stacks);
        }
        let backtrace =
            "std::backtrace_rs::symbolize::gimli::resolve ← std::panicking::default_hook";
        all_told(&["RUST_BACKTRACE"], CPU, "", &[backtrace]);
        // A decoder that waits for its input does not compute.
        let waits = "<std::fs::File as std::io::Read>::read ← flate2::bufread::gz::read_header";
        all_told(&["`tokio::fs`"], FILE, "read", &[waits]);
    }

    #[test]
    fn json_is_known_below_the_code_that_it_calls() {
        all_told(
            &["JSON", "`spawn_blocking`"],
            CPU,
            "",
            &[
                "<app::Order as serde_core::ser::Serialize>::serialize ← serde_json::ser::to_vec",
                "<&mut serde_json::de::Deserializer<R> as serde_core::de::Deserializer>::deserialize_map",
                "_int_free ← core::ptr::drop_in_place<app::Order> ← serde_json::de::from_str",
                "std::fs::read ← serde_json::de::from_reader",
                "<simd_json::Deserializer>::from_slice",
                "sonic_rs::serde::ser::to_string",
                // Of what has been inlined, a trait of the user's type is left.
                "<app::Order as serde::ser::Serialize>::serialize",
            ],
        );
        let waits = "<std::fs::File as std::io::Read>::read ← serde_json::de::from_reader";
        all_told(&["`tokio::fs`"], FILE, "read", &[waits]);
    }

    #[test]
    fn waiting_for_a_lock_asks_for_less_time_in_it() {
        all_told(
            &["shorter critical section", "`tokio::sync`"],
            LOCK,
            "futex",
            &[
                "syscall ← std::sys::sync::mutex::futex::Mutex::lock_contended",
                "<std::sync::poison::mutex::Mutex<T>>::lock",
                "std::sys::sync::rwlock::futex::RwLock::read_contended",
                "std::thread::park ← std::sys::sync::rwlock::queue::RwLock::lock_contended",
                "parking_lot_core::parking_lot::park ← parking_lot::raw_mutex::RawMutex::lock_slow",
                "lock_api::rwlock::RwLock<R,T>::write",
                "dashmap::lock::RawRwLock::lock_exclusive_slow",
                "__lll_lock_wait ← ___pthread_mutex_lock",
            ],
        );
    }

    #[test]
    fn each_wait_for_another_thread_has_its_counterpart() {
        for (words, stacks) in [
            (
                "`tokio::sync::mpsc`",
                &[
                    "<std::thread::thread::Thread>::park ← std::sync::mpmc::context::Context::wait_until",
                    "std::sync::mpsc::Receiver<T>::recv",
                    "std::thread::park_timeout ← crossbeam_channel::context::Context::wait_until",
                    "std::thread::park ← flume::Receiver<T>::recv",
                ][..],
            ),
            (
                "`tokio::sync::Notify`",
                &[
                    "<std::sys::sync::condvar::futex::Condvar>::wait_optional_timeout",
                    "std::sync::poison::condvar::Condvar::wait ← std::sync::barrier::Barrier::wait",
                    "parking_lot::raw_mutex::RawMutex::lock_slow ← parking_lot::condvar::Condvar::wait",
                ],
            ),
            (
                "`tokio::sync::oneshot`",
                &[
                    "__pthread_clockjoin_ex ← std::thread::JoinHandle<T>::join",
                    "std::thread::functions::park",
                    "std::thread::scoped::scope",
                ],
            ),
            (
                "`rayon::spawn`",
                &[
                    "std::sync::condvar::Condvar::wait ← rayon_core::latch::LockLatch::wait_and_reset",
                ],
            ),
            (
                "`tokio::sync::OnceCell`",
                &[
                    "std::sys::sync::once::futex::Once::call ← std::sync::once_lock::OnceLock<T>::get",
                ],
            ),
            ("`tokio::sync`", &["syscall"]),
        ] {
            all_told(&[words], LOCK, "futex", stacks);
        }
    }

    #[test]
    fn block_on_wins_over_what_it_waits_in() {
        let right = ["Await", "`block_on`"];
        all_told(
            &right,
            LOCK,
            "futex",
            &[
                "syscall ← std::thread::park ← futures_executor::local_pool::run_executor",
                "parking_lot::condvar::Condvar::wait ← tokio::runtime::park::CachedParkThread::block_on",
                "<tokio::runtime::handle::Handle>::block_on::<app::answer::{closure#0}>",
                "tokio::task::local::LocalSet::block_on",
                "std::sync::poison::condvar::Condvar::wait ← pollster::block_on",
                "std::sync::mutex::Mutex<T>::lock ← app::inner ← pollster::block_on",
            ],
        );
        let sleeps =
            "std::thread::sleep ← app::inner::{{closure}} ← futures_executor::local_pool::block_on";
        all_told(&right, SLEEP, "clock_nanosleep", &[sleeps]);
        // An event loop inside of a poll is somebody's `block_on`, even if no frame is known.
        let loops = [
            "epoll_wait ← mio::poll::Poll::poll ← tokio::runtime::runtime::Runtime::block_on",
            "?",
        ];
        all_told(&right, OTHER, "epoll_wait", &loops);
        // While the inner future computes, it is what holds the worker.
        let computes = "serde_json::ser::to_vec ← futures_executor::local_pool::block_on";
        all_told(&["JSON"], CPU, "", &[computes]);
    }

    #[test]
    fn writing_a_log_is_not_writing_a_file() {
        all_told(
            &["non-blocking writer"],
            FILE,
            "write",
            &[
                "<std::fs::File as std::io::Write>::write ← tracing_subscriber::fmt::fmt_layer::Layer<S>",
                "<std::fs::File as std::io::Write>::write ← tracing_core::event::Event::dispatch",
                "<tracing_appender::rolling::RollingFileAppender as std::io::Write>::write",
                "write ← <std::io::stdio::StderrLock as std::io::Write>::write_all",
                "write ← <std::io::stdio::Stdout as std::io::Write>::write_fmt",
                "__libc_write ← std::io::stdio::print_to ← std::io::stdio::_print",
                "write ← env_logger::logger::Logger::print",
                "write ← <app::Journal as log::Log>::log",
                "write ← slog::Logger::log",
                "__GI_fsync ← log4rs::append::file::FileAppender",
            ],
        );
        // Somebody else has the writer, and is stuck in it.
        let locked =
            "std::sys::sync::mutex::futex::Mutex::lock_contended ← fern::log_impl::Dispatch";
        all_told(&["non-blocking writer"], LOCK, "futex", &[locked]);
        // The queue of the non-blocking writer is full.
        let full = "crossbeam_channel::channel::Sender<T>::send ← tracing_appender::non_blocking \
            ← tracing_subscriber::fmt::fmt_layer::Layer<S>";
        all_told(&["lossy"], LOCK, "futex", &[full]);
    }

    #[test]
    fn standard_input_and_processes_are_told_the_ones_of_tokio() {
        let input = "__libc_read ← <std::io::stdio::StdinRaw as std::io::Read>::read_buf";
        all_told(&["`tokio::io::stdin`"], FILE, "read", &[input]);
        all_told(
            &["`tokio::process`"],
            PROCESS,
            "wait4",
            &[
                "__wait4 ← std::sys::process::unix::unix::Process::wait",
                "__poll ← <std::process::Command>::output",
                "waitpid",
                "?",
            ],
        );
        let forks = "std::process::Command::spawn ← tokio::process::Command::spawn";
        all_told(&["`spawn_blocking`"], PROCESS, "clone", &[forks]);
    }

    #[test]
    fn a_drop_that_computes_is_told_to_happen_elsewhere() {
        all_told(
            &["drop it", "`spawn_blocking`"],
            CPU,
            "",
            &[
                "_int_free ← __GI___libc_free ← core::ptr::drop_in_place<app::Sessions>",
                "<alloc::boxed::Box<T> as core::ops::drop::Drop>::drop",
                "core::ptr::drop_in_place::<alloc::vec::Vec<serde_json::value::Value>>",
                "<app::Tree as core::ops::drop::Drop>::drop",
                "hashbrown::raw::RawTableInner::drop_elements",
                "cfree@GLIBC_2.2.5",
            ],
        );
        let closes = "core::ptr::drop_in_place<std::fs::File>";
        all_told(&["`tokio::fs`"], FILE, "close", &[closes]);
    }

    #[test]
    fn what_is_not_known_is_told_by_its_cause() {
        let sort = ["core::slice::sort::stable::drift::sort", "?"];
        let right = ["`spawn_blocking`", "rayon", "`yield_now().await`"];
        all_told(&right, CPU, "", &sort);
        all_told(&["async counterpart", "`spawn_blocking`"], OTHER, "", &sort);
        assert_eq!(advise(&[], Cause::Unknown, None), None);
    }

    #[test]
    fn time_that_the_host_took_is_never_blamed_on_the_code() {
        let stack =
            "std::thread::sleep ← rusqlite::Connection::execute ← tokio::runtime::Handle::block_on";
        for (cause, words) in [
            (Cause::Contention, "more CPU"),
            (Cause::Throttled, "CPU limit"),
            (Cause::Suspended, "stood still"),
        ] {
            all_told(&[words], cause, "futex", &[stack, "?"]);
            let told = told(cause, "futex", stack);
            assert!(!told.contains('`') && !told.contains("database"), "{told}");
        }
    }

    #[test]
    fn what_is_handed_over_is_not_what_is_called() {
        all_told(
            &["yield_now"],
            CPU,
            "",
            &[
                "core::iter::traits::iterator::Iterator::fold::<rusqlite::Row, serde_json::Value>",
                "<alloc::vec::Vec<image::Rgb> as core::iter::Extend<serde_json::Value>>::extend",
                "alloc::vec::Vec<rusqlite::Row>::push",
                "<fn(ureq::Agent) -> toml::Value as core::ops::FnOnce<(sha2::Sha256,)>>::call_once",
            ],
        );
    }

    #[test]
    fn a_crate_of_the_users_own_may_be_called_as_another() {
        let own = Frame {
            origin: Origin::Own,
            ..frame_in("/app/image/src/lib.rs", "image::thumbnail::{{closure}}")
        };
        let another = Frame {
            origin: Origin::Dependency,
            ..own.clone()
        };
        let told = |frame| advise(&[frame], CPU, None).unwrap();
        assert!(told(own).contains("yield_now"));
        assert!(told(another).contains("images"));
    }

    #[test]
    fn bare_names_are_known_by_the_place_of_their_source() {
        const REGISTRY: &str = "/root/.cargo/registry/src/index.crates.io-1949cf8c6b5b557f";
        const LIBRARY: &str = "/rustc/59807616e1fa2540724bfbac14d7976d7e4a3860/library";
        for (directory, file, function, cause, words) in [
            (
                REGISTRY,
                "r2d2-0.8.10/src/lib.rs",
                "get<M>",
                LOCK,
                "async pool",
            ),
            (
                REGISTRY,
                "serde_json-1.0.154/src/ser.rs",
                "{closure#0}<u8>",
                CPU,
                "JSON",
            ),
            (REGISTRY, "md-5-0.10.6/src/lib.rs", "digest", CPU, "Hash"),
            (
                REGISTRY,
                "futures-executor-0.3.34/src/local_pool.rs",
                "block_on<F>",
                LOCK,
                "block_on",
            ),
            (
                "vendor",
                "rusqlite/src/statement.rs",
                "step",
                CPU,
                "database",
            ),
            (
                LIBRARY,
                "std/src/sync/poison/mutex.rs",
                "lock<u64>",
                LOCK,
                "critical section",
            ),
            (
                LIBRARY,
                "std/src/thread/join_handle.rs",
                "join<()>",
                LOCK,
                "oneshot",
            ),
            (
                LIBRARY,
                "std/src/fs.rs",
                "read<&std::path::PathBuf>",
                CPU,
                "`tokio::fs`",
            ),
            (
                LIBRARY,
                "core/src/ptr/mod.rs",
                "drop_in_place<app::Big>",
                CPU,
                "drop it",
            ),
            (".", "malloc/malloc.c", "__libc_free", CPU, "drop it"),
            // Not the function of C.
            (REGISTRY, "slab-0.4.12/src/lib.rs", "free", CPU, "yield_now"),
        ] {
            let file = format!("{directory}/{file}");
            let told = advise(&[frame_in(&file, function)], cause, None).unwrap();
            assert!(told.contains(words), "{function} in {file}: {told}");
        }
    }

    #[test]
    fn the_detectors_own_frames_and_those_without_a_name_say_nothing() {
        let detector = Frame {
            origin: Origin::Detector,
            ..frame("std::thread::sleep")
        };
        let nameless = Frame {
            function: None,
            ..frame("")
        };
        assert_eq!(advise(&[detector, nameless], Cause::Unknown, None), None);
    }

    #[test]
    fn names_of_all_kinds_are_taken_apart() {
        for (name, right) in [
            ("std::thread::sleep", "std::thread::sleep"),
            ("std[1a2b3c]::thread::sleep", "std::thread::sleep"),
            ("a::B<C>::d::{{closure}}", "a::B::d::{{closure}}"),
            ("a::B::c(d::E const&)", "a::B::c"),
            ("<a::B<fn(u8) -> c::D>>::e", "a::B::e"),
            ("<a::B as c::D>::e", "a::B::e c::D::e"),
            ("<&mut a::B<C> as d::E<f::G>>::h::<i::J>", "a::B::h d::E::h"),
            ("<&mut <a::B>::c as d::E>::f", "a::B::c::f d::E::f"),
            ("a::<impl b::C for d::E<F>>::g", "a::g d::E::g b::C::g"),
        ] {
            let paths = paths_in(name, false);
            let paths: Vec<String> = paths.iter().map(|path| path.join("::")).collect();
            assert_eq!(paths.join(" "), right, "{name}");
        }
        let of_own = paths_in("<a::B<c::D> as e::F>::g", true);
        assert_eq!(of_own, [["e", "F", "g"]]);
        for odd in [
            "",
            "::",
            "<",
            ">>::<<",
            "<a as ",
            "operator<",
            "é::<ü>::ö",
            "a::<impl ",
        ] {
            let frames = [
                frame(odd),
                frame_in("/src/.rs", odd),
                frame_in("src/é.rs", odd),
            ];
            assert_eq!(advise(&frames, Cause::Unknown, None), None, "{odd}");
        }
    }

    #[test]
    fn no_rule_is_hidden_behind_another() {
        for rule in CATALOGUE {
            let cause = match rule.when {
                When::Only(cause) => cause,
                When::Code | When::Computing => CPU,
                When::Waiting | When::Asleep => OTHER,
            };
            for pattern in rule.patterns() {
                let function = pattern.replace("::*::", "::").replace('*', "");
                let told = advise(&[frame(&function)], cause, None);
                assert_eq!(told, Some(rule.advice), "{pattern}");
            }
        }
    }

    #[test]
    fn each_advice_is_one_short_sentence() {
        for Rule { advice, .. } in CATALOGUE {
            assert!(advice.chars().count() <= 140, "too long: {advice}");
            assert!(advice.ends_with('.') && !advice.contains(". "), "{advice}");
            assert!(advice.starts_with(char::is_uppercase), "{advice}");
            assert_eq!(advice.matches('`').count() % 2, 0, "{advice}");
        }
    }
}
