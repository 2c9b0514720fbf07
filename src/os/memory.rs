//! Reads memory of a process, mostly of this one, through the kernel: an address that is not mapped
//! is an answer, not a crash.
//!
//! *Runs on:* `stall-watchdog`, once a tick for all workers; `stall-explainer`, for the tables of
//! modules; the thread that learns where tokio keeps its counters.
//! *Must not:* touch the memory itself. It may be another thread's, or be unmapped by now: only the
//! kernel may read it.

use super::Pid;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

/// One piece of memory to be read, and its bytes once it has been.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    /// Its first byte.
    pub(crate) address: u64,
    /// Its length in bytes, at most [`Piece::MOST`].
    pub(crate) length: usize,
    bytes: [u8; Piece::MOST],
    is_read: bool,
}

impl Piece {
    /// The largest piece.
    pub(crate) const MOST: usize = 512;

    pub(crate) fn new(address: u64, length: usize) -> Piece {
        Piece {
            address,
            length: length.min(Piece::MOST),
            bytes: [0; Piece::MOST],
            is_read: false,
        }
    }

    /// The bytes, if all of them could be read.
    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        self.is_read.then_some(&self.bytes[..self.length])
    }

    /// The 64-bit word at this offset, if it was read.
    pub(crate) fn word(&self, offset: usize) -> Option<u64> {
        let bytes = self.bytes()?.get(offset..offset + 8)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    }

    /// The 32-bit word at this offset, if it was read.
    pub(crate) fn half_word(&self, offset: usize) -> Option<u32> {
        let bytes = self.bytes()?.get(offset..offset + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    }
}

/// The most pieces of one system call: the kernel's limit.
const AT_ONCE: usize = 1024;

/// Reads all pieces, in one system call if all are mapped. Each piece is read whole or not at all.
///
/// # Cost
///
/// About 0.4 µs, and 0.1 µs for each piece; 0.3 µs for each piece if the system call is forbidden.
pub(crate) fn read_all(pieces: &mut [Piece]) {
    for pieces in pieces.chunks_mut(AT_ONCE) {
        let mut rest = pieces;
        while !rest.is_empty() {
            let Some(read) = read_some(rest) else {
                return rest.iter_mut().for_each(read_by_file);
            };
            // The kernel stops at the first page that is not mapped. Another call reads the pieces
            // after it.
            let next = (read + 1).min(rest.len());
            rest = &mut rest[next..];
        }
    }
}

/// Reads pieces until one is not mapped, and returns how many were read. `None` if the system call
/// is forbidden.
#[allow(unsafe_code)]
fn read_some(pieces: &mut [Piece]) -> Option<usize> {
    let (local, remote) = vectors(pieces);
    // SAFETY: `local` points to buffers of ours, each at least as long as its entry. The kernel
    // checks `remote`.
    let copied = unsafe {
        libc::process_vm_readv(
            libc::getpid(),
            local.as_ptr(),
            local.len() as libc::c_ulong,
            remote.as_ptr(),
            remote.len() as libc::c_ulong,
            0,
        )
    };
    let Ok(copied) = usize::try_from(copied) else {
        let error = std::io::Error::last_os_error().raw_os_error();
        return (error == Some(libc::EFAULT)).then_some(0);
    };
    Some(mark_read(pieces, copied))
}

/// The buffers of these pieces, and the memory to copy into them.
fn vectors(pieces: &mut [Piece]) -> (Vec<libc::iovec>, Vec<libc::iovec>) {
    let part = |base: *mut libc::c_void, length| libc::iovec {
        iov_base: base,
        iov_len: length,
    };
    let mut local = Vec::with_capacity(pieces.len());
    let mut remote = Vec::with_capacity(pieces.len());
    for piece in pieces {
        local.push(part(piece.bytes.as_mut_ptr().cast(), piece.length));
        let address = std::ptr::without_provenance_mut(piece.address as usize);
        remote.push(part(address, piece.length));
    }
    (local, remote)
}

/// Marks the pieces that so many bytes fill, and returns their number.
fn mark_read(pieces: &mut [Piece], mut copied: usize) -> usize {
    let mut whole = 0;
    for piece in pieces {
        if copied < piece.length {
            break;
        }
        copied -= piece.length;
        piece.is_read = true;
        whole += 1;
    }
    whole
}

/// This process's memory as a file, for sandboxes that forbid the system call.
fn file() -> Option<&'static File> {
    static OWN: OnceLock<Option<File>> = OnceLock::new();
    OWN.get_or_init(|| File::open("/proc/self/mem").ok())
        .as_ref()
}

fn read_by_file(piece: &mut Piece) {
    let to = &mut piece.bytes[..piece.length];
    piece.is_read = file().is_some_and(|file| file.read_exact_at(to, piece.address).is_ok());
}

/// Copies from `address` of this process into `to`. Returns the number of bytes copied.
pub(crate) fn read(address: u64, to: &mut [u8]) -> usize {
    read_in(Pid::OWN, address, to)
}

/// Copies from `address` of a process into `to`. Returns the number of bytes copied.
pub(crate) fn read_in(process: Pid, address: u64, to: &mut [u8]) -> usize {
    if let Ok(read) = copy_by_call(process, address, to) {
        return read;
    }
    if std::io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT) {
        return 0;
    }
    let read = match process {
        Pid::OWN => file().and_then(|file| file.read_at(to, address).ok()),
        other => File::open(other.file("mem"))
            .and_then(|file| file.read_at(to, address))
            .ok(),
    };
    read.unwrap_or(0)
}

/// Copies from `address` into `to` by one system call, which a signal handler may make. Returns the
/// number of bytes copied. `Err` if nothing can be read or if the call is forbidden, by `errno`.
#[cfg_attr(not(all(feature = "testing", feature = "stacks")), allow(dead_code))] // Assertions call it.
pub(crate) fn read_by_call(address: u64, to: &mut [u8]) -> Result<usize, ()> {
    copy_by_call(Pid::OWN, address, to)
}

#[allow(unsafe_code)]
fn copy_by_call(process: Pid, address: u64, to: &mut [u8]) -> Result<usize, ()> {
    let number = process.number() as libc::pid_t;
    let local = libc::iovec {
        iov_base: to.as_mut_ptr().cast(),
        iov_len: to.len(),
    };
    let remote = libc::iovec {
        iov_base: std::ptr::without_provenance_mut(address as usize),
        iov_len: to.len(),
    };
    // SAFETY: `local` is memory of ours, written no further than its length. The kernel checks
    // `remote`.
    let read =
        unsafe { libc::process_vm_readv(number, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(read).map_err(|_| ())
}

/// Whether memory can be read in this process. A sandbox may forbid the system call and hide the
/// file.
pub(crate) fn is_readable() -> bool {
    let word = 0_u64;
    read(&raw const word as u64, &mut [0; 8]) == 8
}

/// Copies exactly `length` bytes of a process, or nothing. A length beyond what is mapped, as in a
/// file that is damaged, takes no memory.
#[allow(dead_code)] // Used for stacks only.
pub(crate) fn read_exact(process: Pid, address: u64, length: usize) -> Option<Vec<u8>> {
    let last = address.checked_add(u64::try_from(length).ok()?.checked_sub(1)?)?;
    if read_in(process, last, &mut [0]) != 1 {
        return None;
    }
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length).ok()?;
    bytes.resize(length, 0);
    (read_in(process, address, &mut bytes) == length).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_memory_is_read_and_other_addresses_are_not() {
        let text = *b"stall";
        let address = text.as_ptr() as u64;
        let own = |address| read_exact(Pid::OWN, address, 5);
        assert_eq!(own(address).as_deref(), Some(&text[..]));
        assert_eq!(own(8), None);
        for length in [1 << 46, usize::MAX / 2 + 1, usize::MAX, 0] {
            assert_eq!(read_exact(Pid::OWN, address, length), None, "{length}");
        }
    }

    #[test]
    fn a_piece_that_is_not_mapped_costs_none_of_the_others() {
        let words = [7_u64, 8, 9];
        let at = |index: usize| Piece::new(&raw const words[index] as u64, 8);
        let gone = Piece::new(8, 8);
        let read = |mut pieces: Vec<Piece>| {
            read_all(&mut pieces);
            pieces.iter().map(|piece| piece.word(0)).collect::<Vec<_>>()
        };
        let expected = [Some(7), None, Some(9), None];
        assert_eq!(read(vec![at(0), gone, at(2), gone]), expected);
        assert_eq!(read(vec![gone, at(1)]), [None, Some(8)]);
        assert_eq!(read(Vec::new()), []);
    }

    #[test]
    fn the_file_shows_the_same() {
        let word = 0x5741_4c4c_u64;
        let mut piece = Piece::new(&raw const word as u64, 8);
        read_by_file(&mut piece);
        assert_eq!(piece.word(0), Some(word));
        let mut gone = Piece::new(8, 8);
        read_by_file(&mut gone);
        assert_eq!(gone.word(0), None);
    }
}
