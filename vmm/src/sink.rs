//! A file or FIFO that lines are written to without ever waiting: for metrics, logs, a guest's serial port, timings.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Where lines go. What cannot be written now is left out, but never a part of a line.
#[derive(Debug)]
pub struct LineSink {
    file: File,
    /// The rest of a line of which a FIFO has taken a part.
    rest: Vec<u8>,
}

impl LineSink {
    /// Opens `path`: a FIFO, whether it has a reader or not; or a file, which is made if it is not there, and added to.
    ///
    /// # Errors
    /// The kernel's, and for what is neither.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            // Open for reading too, a FIFO does not ask for a reader.
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)?;
        ensure_kind(&file)?;
        Ok(Self {
            file,
            rest: Vec::new(),
        })
    }

    /// Writes `line`, which has its line end; false when it was left out.
    pub fn write(&mut self, line: &[u8]) -> bool {
        if !self.write_rest() {
            return false;
        }
        match self.file.write(line) {
            Ok(written) if written == line.len() => true,
            Ok(written) => {
                // Its other part comes before the next line.
                self.rest = line.get(written..).unwrap_or_default().to_vec();
                true
            }
            Err(_) => false,
        }
    }

    /// Writes what is left of an earlier line; false when there is still some.
    fn write_rest(&mut self) -> bool {
        while !self.rest.is_empty() {
            match self.file.write(&self.rest) {
                Ok(0) | Err(_) => return false,
                Ok(written) => drop(self.rest.drain(..written)),
            }
        }
        true
    }
}

/// Writes `line` in place of what is in the file `path`, which is made if it is not there; or into a FIFO that has a reader.
///
/// # Errors
/// The kernel's; `ENXIO` for a FIFO without a reader, which is not waited for.
pub fn write_once(path: &Path, line: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    ensure_kind(&file)?;
    file.write_all(line)
}

fn ensure_kind(file: &File) -> io::Result<()> {
    let kind = file.metadata()?.file_type();
    if kind.is_file() || kind.is_fifo() || kind.is_char_device() {
        Ok(())
    } else {
        Err(io::Error::other("it is neither a file nor a FIFO"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use rustix::fs::{CWD, FileType, mknodat};

    use super::*;

    #[test]
    fn a_full_fifo_loses_lines_and_never_a_part_of_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        mknodat(CWD, &path, FileType::Fifo, 0o600.into(), 0).unwrap();
        let mut sink = LineSink::open(&path).unwrap();
        let line = |number: u32| format!("{number:0>9999}\n").into_bytes();
        let taken: Vec<u32> = (0..20)
            .filter(|number| sink.write(&line(*number)))
            .collect();
        assert!(taken.len() < 10, "{taken:?}");
        let mut reader = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)
            .unwrap();
        let mut text = String::new();
        let _ = reader.read_to_string(&mut text);
        assert!(sink.write(&line(99)));
        let _ = reader.read_to_string(&mut text);
        let numbers: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
        let all: Vec<u32> = taken.into_iter().chain([99]).collect();
        assert_eq!(numbers, all);
    }

    #[test]
    fn a_file_is_added_to_and_a_folder_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "old\n").unwrap();
        assert!(LineSink::open(&path).unwrap().write(b"new\n"));
        assert_eq!(std::fs::read(&path).unwrap(), b"old\nnew\n");
        assert!(LineSink::open(folder.path()).is_err());
    }

    #[test]
    fn what_is_written_once_replaces_a_file_and_waits_for_no_reader() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for text in ["first, and longer\n", "second\n"] {
            write_once(&path, text.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        let fifo = folder.path().join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, 0o600.into(), 0).unwrap();
        let refused = write_once(&fifo, b"x\n").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENXIO));
        assert!(write_once(folder.path(), b"x\n").is_err());
    }
}
