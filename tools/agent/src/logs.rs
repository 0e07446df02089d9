//! What sandboxes have printed: sent, and kept from growing for ever.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::rc::Rc;

use hyper::body::Bytes;
use rustix::fs::{FallocateFlags, fallocate};
use tokio::sync::mpsc;

use crate::limits;
use crate::sandboxes::Entry;

/// What part of a log is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The last lines alone.
    pub tail: Option<u64>,
    /// And what comes, until the sandbox ends.
    pub follow: bool,
}

/// Opens `path` where what is wanted of it begins.
///
/// # Errors
/// The kernel's.
pub fn open(path: &Path, wanted: Wanted) -> io::Result<File> {
    let mut file = File::open(path)?;
    let start = match wanted.tail {
        Some(lines) => start_of_tail(&mut file, lines)?,
        None => first_kept(&file)?,
    };
    file.seek(SeekFrom::Start(start))?;
    Ok(file)
}

/// Sends `out` what is in `file` and, if it is wanted, what comes until `entry` has ended.
pub async fn tell(mut file: File, entry: Rc<Entry>, follow: bool, out: mpsc::Sender<Bytes>) {
    let mut piece = vec![0; limits::LOG_PIECE_BYTES];
    loop {
        // Looked at before the last read: what it printed before its end is then read.
        let is_last = !follow || entry.has_ended();
        loop {
            let Ok(length) = file.read(&mut piece) else {
                return;
            };
            let Some(text) = piece.get(..length).filter(|text| !text.is_empty()) else {
                break;
            };
            if out.send(Bytes::copy_from_slice(text)).await.is_err() {
                return;
            }
        }
        if is_last || out.is_closed() {
            return;
        }
        entry.wait(limits::LOG_POLL, Entry::has_ended).await;
    }
}

/// Where the first byte is that was not given back.
fn first_kept(file: &File) -> io::Result<u64> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(0)) {
        Ok(offset) => Ok(offset),
        // Nothing but a hole, or nothing at all.
        Err(rustix::io::Errno::NXIO) => Ok(file.metadata()?.size()),
        // A file system that knows no holes.
        Err(_) => Ok(0),
    }
}

/// Where the last `lines` lines begin.
fn start_of_tail(file: &mut File, lines: u64) -> io::Result<u64> {
    let length = file.metadata()?.size();
    let from = length
        .saturating_sub(limits::TAIL_BYTES_MAX)
        .max(first_kept(file)?);
    file.seek(SeekFrom::Start(from))?;
    let mut end = Vec::new();
    file.take(length.saturating_sub(from))
        .read_to_end(&mut end)?;
    Ok(from + tail_offset(&end, lines))
}

/// Offset in `text` of its last `lines` lines.
fn tail_offset(text: &[u8], lines: u64) -> u64 {
    if lines == 0 {
        return text.len() as u64;
    }
    // The end of the last line begins no other one.
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let mut ends = (0..body.len())
        .rev()
        .filter(|at| body.get(*at) == Some(&b'\n'));
    let lines = usize::try_from(lines).unwrap_or(usize::MAX);
    ends.nth(lines - 1).map_or(0, |at| at as u64 + 1)
}

/// Gives the host back what is in `path` before its last `kept` bytes. Whoever writes it does not notice: it is written at its
/// end, which stays where it is.
///
/// # Errors
/// The kernel's: a file system without holes (EOPNOTSUPP).
pub fn shorten(path: &Path, kept: u64) -> io::Result<()> {
    let found = std::fs::metadata(path)?;
    // Blocks of stat, 512 bytes each; a hole has none.
    if found.blocks().saturating_mul(512) <= kept {
        return Ok(());
    }
    let surplus = found.size().saturating_sub(kept);
    if surplus == 0 {
        return Ok(());
    }
    let file = OpenOptions::new().write(true).open(path)?;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(&file, flags, 0, surplus)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;

    use super::*;

    #[test]
    fn the_tail_begins_with_a_line() {
        for (text, lines, expected) in [
            ("a\nb\nc\n", 0, ""),
            ("a\nb\nc\n", 1, "c\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\nc\n", 3, "a\nb\nc\n"),
            ("a\nb\n", 9, "a\nb\n"),
            ("\n\n", 1, "\n"),
            ("", 1, ""),
        ] {
            let offset = usize::try_from(tail_offset(text.as_bytes(), lines)).unwrap();
            assert_eq!(&text[offset..], expected, "{text:?} {lines}");
        }
    }

    #[test]
    fn a_shortened_log_keeps_its_end_and_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        let mut options = OpenOptions::new();
        let mut writer = options.append(true).create(true).open(&path).unwrap();
        let line = [b'x'; 4095];
        for _ in 0..64 {
            writer.write_all(&line).unwrap();
            writer.write_all(b"\n").unwrap();
        }
        let length = fs::metadata(&path).unwrap().size();
        match shorten(&path, 64 << 10) {
            // Not every file system has holes.
            Err(cause)
                if cause.raw_os_error() == Some(rustix::io::Errno::OPNOTSUPP.raw_os_error()) =>
            {
                return;
            }
            shortened => shortened.unwrap(),
        }
        let found = fs::metadata(&path).unwrap();
        assert_eq!(found.size(), length);
        assert!(
            found.blocks() * 512 <= 80 << 10,
            "{} blocks",
            found.blocks()
        );
        writer.write_all(b"last\n").unwrap();
        let read = |wanted| {
            let mut text = String::new();
            let mut file = open(&path, wanted).unwrap();
            file.read_to_string(&mut text).unwrap();
            text
        };
        let follow = false;
        let all = read(Wanted { tail: None, follow });
        assert!(all.len() < 100 << 10 && all.ends_with("x\nlast\n") && !all.contains('\0'));
        assert_eq!(
            read(Wanted {
                tail: Some(1),
                follow
            }),
            "last\n"
        );
    }
}
