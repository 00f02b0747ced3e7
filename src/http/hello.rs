//! Limits what a client may send before its TLS handshake is answered: the TLS library itself takes up to 64 KiB.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The longest `ClientHello`: those of common clients have at most 2 KiB, also with post-quantum keys.
const MAX_HELLO: usize = 4 << 10;

/// A stream that fails when the client sends more than a `ClientHello` before the first byte of the answer.
pub(super) struct HelloLimit<S> {
    stream: S,
    /// What was read; `None` once there is an answer.
    read: Option<usize>,
}

impl<S> HelloLimit<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, read: Some(0) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HelloLimit<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Some(read) = &mut self.read {
            *read += buf.filled().len() - before;
            if *read > MAX_HELLO {
                return Poll::Ready(Err(io::Error::other("the ClientHello is larger than 4 KiB")));
            }
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HelloLimit<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.read = None;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.read = None;
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn a_client_may_send_no_more_than_a_hello_before_the_answer() {
        let (mut client, server) = duplex(4 * MAX_HELLO);
        let mut server = HelloLimit::new(server);
        client.write_all(&[0; 2 * MAX_HELLO]).await.unwrap();
        server.read_exact(&mut [0; MAX_HELLO]).await.unwrap();
        assert_eq!(server.read_u8().await.unwrap_err().to_string(), "the ClientHello is larger than 4 KiB");
        server.write_u8(0).await.unwrap();
        server.read_u8().await.unwrap();
    }
}
