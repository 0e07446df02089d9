//! Streams of the host as the console uses them: never waiting, except at the end.
//!
//! O_NONBLOCK belongs to the open file, which other processes share: set on our standard output it would break a shell's
//! next program. So pipes and terminals are opened once more; sockets are told call by call; files do not wait for
//! anybody. What cannot be opened again (another user's) is asked by poll before each call.

use std::fmt;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

/// Bytes that a pipe takes without waiting once poll has said that it takes any (PIPE_BUF).
const POLLED_WRITE_BYTES: usize = 4096;

/// How calls on a stream are kept from waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Opened by us, non-blocking.
    Own,
    /// A socket: each call says so.
    Socket,
    /// A file or disk, which does not wait for a reader or writer.
    File,
    /// Shared with others, and perhaps blocking: asked first.
    Shared,
}

#[derive(Debug)]
struct Stream {
    fd: OwnedFd,
    way: Way,
    kind: FileType,
}

impl Stream {
    fn open(fd: BorrowedFd<'_>, access: OFlags) -> io::Result<Self> {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode);
        let way = match kind {
            FileType::Socket => Way::Socket,
            FileType::RegularFile | FileType::BlockDevice => Way::File,
            _ => {
                let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
                let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                // By openat, as all of the program opens files: the filters of system calls know no other.
                match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
                    Ok(fd) => {
                        let way = Way::Own;
                        return Ok(Self { fd, way, kind });
                    }
                    // A pipe without a reader.
                    Err(Errno::NXIO) if kind == FileType::Fifo => return Err(Errno::PIPE.into()),
                    Err(_) => Way::Shared,
                }
            }
        };
        // Not a new open file: its position is everybody's.
        let fd = rustix::io::fcntl_dupfd_cloexec(fd, 3)?;
        Ok(Self { fd, way, kind })
    }

    fn read(&self, target: &mut [u8]) -> rustix::io::Result<usize> {
        match self.way {
            Way::Socket => {
                rustix::net::recv(&self.fd, target, RecvFlags::DONTWAIT).map(|(got, _)| got)
            }
            Way::Shared if !self.is_ready(PollFlags::IN, 0) => Err(Errno::AGAIN),
            _ => rustix::io::read(&self.fd, target),
        }
    }

    fn write(&self, bytes: &[u8]) -> rustix::io::Result<usize> {
        match self.way {
            Way::Socket => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                rustix::net::send(&self.fd, bytes, flags)
            }
            Way::Shared if !self.is_ready(PollFlags::OUT, 0) => Err(Errno::AGAIN),
            Way::Shared => {
                let few = bytes.get(..POLLED_WRITE_BYTES).unwrap_or(bytes);
                rustix::io::write(&self.fd, few)
            }
            _ => rustix::io::write(&self.fd, bytes),
        }
    }

    /// Whether a call would not wait, or would fail, within `wait_ms`.
    fn is_ready(&self, wanted: PollFlags, wait_ms: u16) -> bool {
        let timeout = Timespec {
            tv_sec: i64::from(wait_ms / 1000),
            tv_nsec: i64::from(wait_ms % 1000) * 1_000_000,
        };
        let mut fds = [PollFd::new(&self.fd, wanted)];
        poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0)
    }

    /// Whether `cause` says that the other side has gone, which is nobody's mistake.
    fn is_gone(&self, cause: Errno) -> bool {
        let is_hang_up = cause == Errno::IO && self.kind == FileType::CharacterDevice;
        matches!(cause, Errno::PIPE | Errno::CONNRESET) || is_hang_up
    }
}

/// Where bytes for the guest come from.
#[derive(Debug)]
pub struct Input(Stream);

/// What an [`Input`] gave.
#[derive(Debug)]
pub(super) enum Got {
    /// So many bytes, not 0.
    Bytes(usize),
    /// None for now.
    Nothing,
    /// No more, ever.
    End,
    /// No more, because of this.
    Failed(io::Error),
}

impl Input {
    /// Reads what `fd` reads.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Stream::open(fd, OFlags::RDONLY).map(Self)
    }

    /// Takes up to `target.len()` bytes, not 0, without waiting.
    pub(super) fn read(&self, target: &mut [u8]) -> Got {
        loop {
            return match self.0.read(target) {
                Ok(0) => Got::End,
                Ok(bytes) => Got::Bytes(bytes),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => Got::Nothing,
                Err(cause) if self.0.is_gone(cause) => Got::End,
                Err(cause) => Got::Failed(cause.into()),
            };
        }
    }
}

impl AsFd for Input {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

/// Is told of a failure by which output was lost that somebody wanted.
pub type OnLost = Arc<dyn Fn(&io::Error) + Send + Sync>;

/// Where bytes from the guest go.
pub struct Output {
    /// `None`: nowhere.
    stream: Option<Stream>,
    /// The reader has gone. The stream is kept: it may be watched.
    is_gone: bool,
    on_lost: OnLost,
}

/// What an [`Output`] took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Took {
    /// So many bytes, not 0. What was lost, or nobody wants, counts too.
    Bytes(usize),
    /// None for now.
    Nothing,
}

impl Output {
    /// Writes where `fd` writes. A reader that has gone already is no error: nobody wants the output.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(fd: BorrowedFd<'_>, on_lost: OnLost) -> io::Result<Self> {
        let stream = match Stream::open(fd, OFlags::WRONLY) {
            Ok(stream) => Some(stream),
            Err(cause) if cause.kind() == ErrorKind::BrokenPipe => None,
            Err(cause) => return Err(cause),
        };
        Ok(Self {
            stream,
            is_gone: false,
            on_lost,
        })
    }

    /// Forgets what it is given.
    #[must_use]
    pub fn nowhere() -> Self {
        Self {
            stream: None,
            is_gone: false,
            on_lost: Arc::new(|_| ()),
        }
    }

    /// Whether there is anybody who gets the output.
    pub(super) const fn goes_somewhere(&self) -> bool {
        self.stream.is_some() && !self.is_gone
    }

    /// Writes some of `bytes`, which are not 0, without waiting.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Took {
        let Some(stream) = self.stream.as_ref().filter(|_| !self.is_gone) else {
            return Took::Bytes(bytes.len());
        };
        loop {
            return match stream.write(bytes) {
                Ok(0) | Err(Errno::AGAIN) => Took::Nothing,
                Ok(written) => Took::Bytes(written),
                Err(Errno::INTR) => continue,
                Err(cause) if stream.is_gone(cause) => {
                    self.is_gone = true;
                    Took::Bytes(bytes.len())
                }
                Err(cause) => {
                    (self.on_lost)(&cause.into());
                    Took::Bytes(bytes.len())
                }
            };
        }
    }

    /// Waits until it takes bytes, `wait_ms` at most.
    pub(super) fn wait(&self, wait_ms: u16) {
        if let Some(stream) = &self.stream {
            stream.is_ready(PollFlags::OUT, wait_ms);
        }
    }

    /// What to watch, if it ever went anywhere.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.stream.as_ref().map(|stream| stream.fd.as_fd())
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output")
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn output(fd: impl AsFd) -> (Output, Arc<AtomicU32>) {
        let losses = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&losses);
        let on_lost: OnLost = Arc::new(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        (Output::open(fd.as_fd(), on_lost).unwrap(), losses)
    }

    fn fill(output: &mut Output) -> usize {
        let mut written = 0;
        while let Took::Bytes(bytes) = output.write(&[7; 10_000]) {
            written += bytes;
        }
        written
    }

    #[test]
    fn a_full_pipe_takes_nothing_and_its_flags_stay_as_they_were() {
        let (mut reader, writer) = io::pipe().unwrap();
        let (mut output, losses) = output(&writer);
        let written = fill(&mut output);
        assert!(written >= 4096, "{written}");
        let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK));
        let mut read = vec![0; written];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(output.write(b"more"), Took::Bytes(4));
        assert_eq!(losses.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_full_socket_takes_nothing() {
        let (_reader, writer) = UnixStream::pair().unwrap();
        let (mut output, _) = output(&writer);
        assert!(fill(&mut output) > 0);
    }

    #[test]
    fn what_cannot_be_opened_again_is_asked_first() {
        let (reader, writer) = io::pipe().unwrap();
        let shared = |fd: OwnedFd| Stream {
            fd,
            way: Way::Shared,
            kind: FileType::Fifo,
        };
        let input = Input(shared(reader.into()));
        assert!(matches!(input.read(&mut [0; 8]), Got::Nothing));
        let mut output = Output {
            stream: Some(shared(writer.into())),
            ..Output::nowhere()
        };
        let written = fill(&mut output);
        assert!(written > 0 && written.is_multiple_of(POLLED_WRITE_BYTES));
        assert!(matches!(input.read(&mut [0; 8]), Got::Bytes(8)));
    }

    #[test]
    fn a_reader_that_has_gone_loses_nothing_that_anybody_wants() {
        let (reader, writer) = io::pipe().unwrap();
        let (mut early, early_losses) = output(&writer);
        drop(reader);
        let (mut late, late_losses) = output(&writer);
        for (output, losses) in [(&mut early, early_losses), (&mut late, late_losses)] {
            assert_eq!(output.write(b"text"), Took::Bytes(4));
            assert!(!output.goes_somewhere());
            assert_eq!(losses.load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn a_full_disk_is_told_and_does_not_end_the_output() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let (mut output, losses) = output(&full);
        for count in 1..=2 {
            assert_eq!(output.write(b"text"), Took::Bytes(4));
            assert_eq!(losses.load(Ordering::Relaxed), count);
        }
        assert!(output.goes_somewhere());
    }

    #[test]
    fn a_file_is_written_where_others_have_left_it() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"before ").unwrap();
        let (mut output, _) = output(&file);
        assert_eq!(output.write(b"ours "), Took::Bytes(5));
        file.write_all(b"after").unwrap();
        io::Seek::rewind(&mut file).unwrap();
        assert_eq!(io::read_to_string(&file).unwrap(), "before ours after");
    }

    #[test]
    fn input_ends_after_its_last_byte() {
        let (reader, mut writer) = io::pipe().unwrap();
        let input = Input::open(reader.as_fd()).unwrap();
        let mut buffer = [0; 8];
        assert!(matches!(input.read(&mut buffer), Got::Nothing));
        writer.write_all(b"last").unwrap();
        drop(writer);
        assert!(matches!(input.read(&mut buffer), Got::Bytes(4)));
        assert!(matches!(input.read(&mut buffer), Got::End));
        let null = File::open("/dev/null").unwrap();
        let input = Input::open(null.as_fd()).unwrap();
        assert!(matches!(input.read(&mut buffer), Got::End));
        let folder = File::open("/").unwrap();
        let input = Input::open(folder.as_fd()).unwrap();
        assert!(matches!(input.read(&mut buffer), Got::Failed(_)));
    }
}
