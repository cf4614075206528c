//! The TCP socket below TLS: little is read of a stranger, and much at a time of whoever sends much.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::guard::GuardError;
use crate::limits::TLS_HANDSHAKE_BYTES;

/// How much is read at a time while much comes. rustls itself asks for 4 KiB, with a system call each.
const AHEAD: usize = 64 * 1024;

pub(crate) struct TlsSocket {
    stream: TcpStream,
    /// Of a stranger, bytes after which no more is read: rustls would collect 64 KiB of each. None after its handshake.
    ration: Option<usize>,
    /// What was read ahead. Without room unless much comes.
    ahead: Vec<u8>,
    /// Where in it lies what rustls has not asked for yet.
    unread: Range<usize>,
}

impl TlsSocket {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, ration: None, ahead: Vec::new(), unread: 0..0 }
    }

    /// Of a stranger whose handshake begins.
    pub(crate) fn rationed(stream: TcpStream) -> Self {
        Self { ration: Some(TLS_HANDSHAKE_BYTES), ..Self::new(stream) }
    }

    /// Its handshake is complete.
    pub(crate) fn lift_ration(&mut self) {
        self.ration = None;
    }

    /// The socket. What was read ahead is lost to whoever reads it.
    pub(crate) fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// Reads ahead again, or gives the room back if nothing is there.
    fn read_ahead(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut buffer = ReadBuf::new(&mut self.ahead);
        let read = Pin::new(&mut self.stream).poll_read(context, &mut buffer);
        self.unread = 0..buffer.filled().len();
        if read.is_pending() {
            self.ahead = Vec::new();
        }
        read
    }
}

impl AsyncRead for TlsSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ration == Some(0) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, GuardError::TlsHandshake)));
        }
        if this.ahead.is_empty() {
            let before = buffer.filled().len();
            ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
            match &mut this.ration {
                Some(left) => *left = left.saturating_sub(buffer.filled().len() - before),
                None if buffer.remaining() == 0 => this.ahead.resize(AHEAD, 0),
                None => {}
            }
            return Poll::Ready(Ok(()));
        }
        if this.unread.is_empty() {
            ready!(this.read_ahead(context))?;
        }
        let length = this.unread.len().min(buffer.remaining());
        buffer.put_slice(&this.ahead[this.unread.start..][..length]);
        this.unread.start += length;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TlsSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (listener.accept().await.unwrap().0, there)
    }

    #[tokio::test]
    async fn what_is_read_ahead_arrives_in_order_and_its_room_is_given_back() {
        let (here, mut there) = pair().await;
        let mut socket = TlsSocket::new(here);
        let sent: Vec<u8> = (0..1_000_000_u32).map(|number| (number % 251) as u8).collect();
        let copy = sent.clone();
        tokio::spawn(async move {
            there.write_all(&copy).await.unwrap();
            // Until the test has read the next word, nothing more comes.
            assert_eq!(there.read_u8().await.unwrap(), b'!');
        });
        let mut received: Vec<u8> = Vec::new();
        let mut most = 0;
        while received.len() < sent.len() {
            let mut buffer = [0; 4_096];
            let length = socket.read(&mut buffer).await.unwrap();
            received.extend(&buffer[..length]);
            most = most.max(socket.ahead.len());
        }
        assert!(received == sent);
        assert_eq!(most, AHEAD);
        let mut buffer = [0; 4_096];
        tokio::select! {
            biased;
            read = socket.read(&mut buffer) => panic!("nothing was sent: {read:?}"),
            () = std::future::ready(()) => {}
        }
        assert!(socket.ahead.is_empty());
        socket.write_u8(b'!').await.unwrap();
        assert_eq!(socket.read(&mut buffer).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn of_a_stranger_no_more_than_its_ration_is_read() {
        let (here, mut there) = pair().await;
        let mut socket = TlsSocket::rationed(here);
        there.write_all(&[7; TLS_HANDSHAKE_BYTES + 1]).await.unwrap();
        let mut received = vec![0; TLS_HANDSHAKE_BYTES];
        socket.read_exact(&mut received).await.unwrap();
        let error = socket.read(&mut received).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(socket.ahead.is_empty());
        socket.lift_ration();
        assert_eq!(socket.read(&mut received).await.unwrap(), 1);
    }
}
