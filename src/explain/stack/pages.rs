//! Parts of files, read page by page: a file that is cut meanwhile is an error.
//!
//! *Runs on:* `stall-explainer`; in tests also a thread that measures itself.
//! *Must not:* map a file. A mapped page that the file has lost is a SIGBUS.
//!
//! Only pages that are asked for are read, and they stay until the file is dropped.

use crate::capture::Mapped;
use gimli::{Error, LittleEndian, ReaderOffsetId};
use parking_lot::Mutex;
use std::borrow::Cow;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// The bytes read at a time: what a mapping would bring into memory, too.
const PAGE: usize = 4096;

/// The most bytes kept of one file. Debug information is looked up in a few places, and its index
/// is a small part of it.
const MOST: usize = 64 << 20;

/// A file that is open for reading, and the bytes that may still be read from it.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) file: File,
    state: FileState,
    left: Mutex<usize>,
}

/// The state of a file that changes when it is written to.
#[derive(Debug, PartialEq, Eq)]
struct FileState {
    size: u64,
    modified: (i64, i64),
}

impl FileState {
    fn of(metadata: &Metadata) -> FileState {
        FileState {
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl Opened {
    /// Opens a regular file. A pipe in its place is an error, and no wait for a writer.
    pub(super) fn new(path: &Path) -> io::Result<Opened> {
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Opened {
            state: FileState::of(&metadata),
            left: Mutex::new(MOST),
            file,
        })
    }

    /// Whether it is the file that is mapped, by its number on its device.
    pub(super) fn is_mapped_as(&self, mapped: &Mapped) -> bool {
        let metadata = self.file.metadata();
        metadata.is_ok_and(|metadata| mapped.is_file(metadata.dev(), metadata.ino()))
    }

    /// Whether nobody has written to it since it was opened.
    pub(super) fn is_unchanged(&self) -> bool {
        let now = self.file.metadata();
        now.is_ok_and(|now| FileState::of(&now) == self.state)
    }

    /// Whether more was asked for than is kept of one file.
    pub(super) fn is_exhausted(&self) -> bool {
        *self.left.lock() == 0
    }

    /// Takes so many bytes from those that may still be kept.
    pub(super) fn take(&self, bytes: usize) -> Result<(), Error> {
        let mut left = self.left.lock();
        let rest = left.checked_sub(bytes);
        *left = rest.unwrap_or(0);
        rest.map(|_| ()).ok_or(Error::Io)
    }

    fn read(&self, at: u64, length: usize) -> Result<Box<[u8]>, Error> {
        let mut bytes = vec![0; length].into_boxed_slice();
        let read = self.file.read_exact_at(&mut bytes, at);
        read.map_err(|_| Error::Io).map(|()| bytes)
    }
}

/// A part of a file, or bytes made from one.
#[derive(Debug)]
enum Content {
    Paged {
        opened: Arc<Opened>,
        range: Range<u64>,
        /// Whether its pages count towards the most that is kept.
        counted: bool,
        pages: Box<[OnceLock<Box<[u8]>>]>,
    },
    Whole(Box<[u8]>),
}

impl Content {
    fn length(&self) -> usize {
        match self {
            Content::Paged { range, .. } => (range.end - range.start) as usize,
            Content::Whole(bytes) => bytes.len(),
        }
    }

    /// The bytes from `at` to the end of their page: at least one. An error beyond the end.
    #[inline]
    fn from(&self, at: usize) -> Result<&[u8], Error> {
        let (bytes, skipped) = match self {
            Content::Whole(bytes) => (Some(&**bytes), at),
            Content::Paged { pages, .. } => {
                let page = pages.get(at / PAGE).and_then(OnceLock::get);
                (page.map(|page| &**page), at % PAGE)
            }
        };
        match bytes {
            Some(bytes) if skipped < bytes.len() => Ok(&bytes[skipped..]),
            Some(_) => Err(Error::Io),
            None => self.read_page(at / PAGE).map(|page| &page[skipped..]),
        }
    }

    /// Reads a page that has not been read. It has a byte for each place in the part.
    #[cold]
    fn read_page(&self, index: usize) -> Result<&[u8], Error> {
        let Content::Paged {
            opened,
            range,
            counted,
            pages,
        } = self
        else {
            return Err(Error::Io);
        };
        let page = pages.get(index).ok_or(Error::Io)?;
        let at = range.start + (index * PAGE) as u64;
        let length = (range.end - at).min(PAGE as u64) as usize;
        if *counted {
            opened.take(length)?;
        }
        // Another thread may have read the same page meanwhile.
        let _ = page.set(opened.read(at, length)?);
        page.get().map(|page| &**page).ok_or(Error::Io)
    }
}

/// Reads a part of a file for `gimli`.
#[derive(Clone, Debug)]
pub(super) struct Reader {
    part: Arc<Content>,
    at: usize,
    end: usize,
}

impl Reader {
    /// Reads these bytes of a file. Nothing if they lie beyond its end.
    pub(super) fn of_file(opened: &Arc<Opened>, range: Range<u64>) -> Reader {
        Reader::of_part(opened, range, true)
    }

    /// Reads names of symbols, which are there also when no more debug information may be kept: a
    /// page at the most for each name.
    pub(super) fn of_names(opened: &Arc<Opened>, range: Range<u64>) -> Reader {
        Reader::of_part(opened, range, false)
    }

    fn of_part(opened: &Arc<Opened>, range: Range<u64>, counted: bool) -> Reader {
        if range.end > opened.state.size || range.start >= range.end {
            return Reader::of_bytes(Vec::new());
        }
        let pages = (range.end - range.start).div_ceil(PAGE as u64);
        Reader::new(Content::Paged {
            opened: opened.clone(),
            range,
            counted,
            pages: (0..pages).map(|_| OnceLock::new()).collect(),
        })
    }

    pub(super) fn of_bytes(bytes: Vec<u8>) -> Reader {
        Reader::new(Content::Whole(bytes.into()))
    }

    fn new(part: Content) -> Reader {
        Reader {
            at: 0,
            end: part.length(),
            part: Arc::new(part),
        }
    }

    fn left(&self) -> usize {
        self.end - self.at
    }

    /// The bytes that are left, up to the end of the page.
    #[inline]
    fn rest_of_page(&self) -> Result<&[u8], Error> {
        let bytes = self.part.from(self.at)?;
        Ok(&bytes[..bytes.len().min(self.left())])
    }

    fn beyond(&self) -> Error {
        Error::UnexpectedEof(gimli::Reader::offset_id(self))
    }
}

impl gimli::Reader for Reader {
    type Endian = LittleEndian;
    type Offset = usize;

    fn endian(&self) -> LittleEndian {
        LittleEndian
    }

    fn len(&self) -> usize {
        self.left()
    }

    fn empty(&mut self) {
        self.end = self.at;
    }

    fn truncate(&mut self, length: usize) -> Result<(), Error> {
        if length > self.left() {
            return Err(self.beyond());
        }
        self.end = self.at + length;
        Ok(())
    }

    fn offset_from(&self, base: &Reader) -> usize {
        self.at - base.at
    }

    fn offset_id(&self) -> ReaderOffsetId {
        ReaderOffsetId(self.at as u64)
    }

    fn lookup_offset_id(&self, id: ReaderOffsetId) -> Option<usize> {
        let at = usize::try_from(id.0).ok()?;
        (self.at..=self.end).contains(&at).then(|| at - self.at)
    }

    fn find(&self, byte: u8) -> Result<usize, Error> {
        let mut rest = self.clone();
        while rest.left() > 0 {
            let bytes = rest.rest_of_page()?;
            if let Some(found) = bytes.iter().position(|other| *other == byte) {
                return Ok(rest.at + found - self.at);
            }
            rest.at += bytes.len();
        }
        Err(self.beyond())
    }

    fn skip(&mut self, length: usize) -> Result<(), Error> {
        if length > self.left() {
            return Err(self.beyond());
        }
        self.at += length;
        Ok(())
    }

    fn split(&mut self, length: usize) -> Result<Reader, Error> {
        let mut first = self.clone();
        first.truncate(length)?;
        self.at += length;
        Ok(first)
    }

    fn to_slice(&self) -> Result<Cow<'_, [u8]>, Error> {
        if self.left() == 0 {
            return Ok(Cow::Borrowed(&[]));
        }
        let first = self.rest_of_page()?;
        if first.len() == self.left() {
            return Ok(Cow::Borrowed(first));
        }
        let mut bytes = vec![0; self.left()];
        self.clone().read_slice(&mut bytes)?;
        Ok(Cow::Owned(bytes))
    }

    fn to_string(&self) -> Result<Cow<'_, str>, Error> {
        let text = match self.to_slice()? {
            Cow::Borrowed(bytes) => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
            Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
        };
        text.ok_or(Error::BadUtf8)
    }

    fn to_string_lossy(&self) -> Result<Cow<'_, str>, Error> {
        Ok(match self.to_slice()? {
            Cow::Borrowed(bytes) => String::from_utf8_lossy(bytes),
            Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
        })
    }

    // The two that most of the parsing is made of.
    #[inline]
    fn read_u8(&mut self) -> Result<u8, Error> {
        let byte = self.rest_of_page()?.first().copied();
        self.at += usize::from(byte.is_some());
        byte.ok_or_else(|| self.beyond())
    }

    #[inline]
    fn read_uleb128(&mut self) -> Result<u64, Error> {
        match self.rest_of_page()? {
            [byte, ..] if *byte < 0x80 => {
                let number = u64::from(*byte);
                self.at += 1;
                Ok(number)
            }
            _ => gimli::leb128::read::unsigned(self),
        }
    }

    #[inline]
    fn read_slice(&mut self, mut to: &mut [u8]) -> Result<(), Error> {
        if to.len() > self.left() {
            return Err(self.beyond());
        }
        while !to.is_empty() {
            let from = self.rest_of_page()?;
            let length = from.len().min(to.len());
            let (now, later) = std::mem::take(&mut to).split_at_mut(length);
            now.copy_from_slice(&from[..length]);
            to = later;
            self.at += length;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gimli::Reader as _;
    use std::io::Write as _;

    /// A file of three pages and a bit, in which each four bytes are their own number.
    fn file() -> (tempfile::NamedTempFile, Vec<u8>) {
        let numbers = 0..(3 * PAGE as u32 + 40) / 4;
        let bytes: Vec<u8> = numbers.flat_map(u32::to_le_bytes).collect();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        (file, bytes)
    }

    fn reader(file: &tempfile::NamedTempFile, range: Range<u64>) -> (Arc<Opened>, Reader) {
        let opened = Arc::new(Opened::new(file.path()).unwrap());
        let reader = Reader::of_file(&opened, range);
        (opened, reader)
    }

    #[test]
    fn it_reads_as_the_bytes_themselves_also_across_pages() {
        let (file, bytes) = file();
        let (_, mut paged) = reader(&file, 2..bytes.len() as u64);
        let mut whole = Reader::of_bytes(bytes[2..].to_vec());
        assert_eq!(paged.to_slice().unwrap(), whole.to_slice().unwrap());
        for skipped in [0, PAGE - 7, 3, PAGE, 5] {
            paged.skip(skipped).unwrap();
            whole.skip(skipped).unwrap();
            assert_eq!(paged.find(9), whole.find(9));
            assert_eq!(paged.read_u64(), whole.read_u64());
            let (mut first, mut other) = (paged.split(6).unwrap(), whole.split(6).unwrap());
            assert_eq!(first.to_slice().unwrap(), other.to_slice().unwrap());
            assert!(first.read_u64().is_err() && other.read_u64().is_err());
            assert_eq!(paged.len(), whole.len());
        }
    }

    #[test]
    fn a_file_that_is_cut_is_an_error() {
        let (file, bytes) = file();
        let (opened, mut reader) = reader(&file, 0..bytes.len() as u64);
        assert_eq!(reader.read_u32(), Ok(0));
        assert!(opened.is_unchanged());
        file.as_file().set_len(10).unwrap();
        assert_eq!(reader.read_u32(), Ok(1), "its page has been read");
        reader.skip(PAGE).unwrap();
        assert_eq!(reader.read_u32(), Err(Error::Io));
        assert!(!opened.is_unchanged());
    }

    #[test]
    fn no_more_is_read_than_may_be_kept() {
        let (file, bytes) = file();
        let (opened, mut reader) = reader(&file, 0..bytes.len() as u64);
        opened.take(MOST - PAGE).unwrap();
        assert_eq!(reader.read_u32(), Ok(0));
        reader.skip(PAGE).unwrap();
        assert_eq!(reader.read_u32(), Err(Error::Io));
        assert!(opened.is_exhausted());
        assert!(opened.is_unchanged());
    }

    #[test]
    fn a_part_beyond_the_end_and_a_directory_are_nothing() {
        let (file, bytes) = file();
        let (_, reader) = reader(&file, 0..bytes.len() as u64 + 1);
        assert!(reader.is_empty());
        assert!(Opened::new(Path::new("/")).is_err());
    }
}
