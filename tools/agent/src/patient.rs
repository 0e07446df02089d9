//! A client's stream that is given up when the client takes nothing for too long.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// The stream.
#[derive(Debug)]
pub struct Patient<S> {
    stream: S,
    time_max: Duration,
    /// Runs while a write waits for the client.
    stall: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    /// `stream`, whose client may take `time_max` to take a byte.
    pub const fn new(stream: S, time_max: Duration) -> Self {
        Self {
            stream,
            time_max,
            stall: None,
        }
    }

    /// `polled`, or the end of all patience.
    fn judge<T>(
        &mut self,
        context: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stall = None;
            return polled;
        }
        let time_max = self.time_max;
        let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(time_max)));
        ready!(stall.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(context, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.judge(context, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(context);
        self.judge(context, polled)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Read as _;
    use std::os::unix::net::UnixStream as StdStream;
    use std::thread;

    use tokio::net::UnixStream;

    use super::*;

    /// Writes `count` bytes; how many the client has taken, or why no more.
    async fn write(stream: StdStream, count: usize, time_max: Duration) -> io::Result<usize> {
        stream.set_nonblocking(true)?;
        let mut stream = Patient::new(UnixStream::from_std(stream)?, time_max);
        let bytes = vec![0; 64 << 10];
        let mut written = 0;
        while written < count {
            let write = poll_fn(|context| Pin::new(&mut stream).poll_write(context, &bytes));
            written += write.await?;
        }
        Ok(written)
    }

    #[test]
    fn a_client_that_never_reads_is_given_up_and_one_that_reads_is_not() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        // More than any socket's buffers hold.
        let count = 64 << 20;
        let (ours, theirs) = StdStream::pair().unwrap();
        let time_max = Duration::from_millis(20);
        let written = runtime.block_on(write(ours, count, time_max));
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(theirs);
        let (ours, mut theirs) = StdStream::pair().unwrap();
        let reader = thread::spawn(move || {
            let mut bytes = Vec::new();
            theirs.read_to_end(&mut bytes).map(|_| bytes.len())
        });
        let time_max = Duration::from_secs(3600);
        let written = runtime.block_on(write(ours, count, time_max)).unwrap();
        assert_eq!(reader.join().unwrap().unwrap(), written);
    }
}
