//! A process that ends when another one does, however that ends: it holds the other end of a pipe.

use std::os::fd::AsFd;

use anyhow::Context;
use tokio::net::unix::pipe::Receiver;

/// Standard input, if it is such a pipe.
pub(crate) struct Leash(Option<Receiver>);

impl Leash {
    /// Within a runtime.
    pub(crate) fn new(leashed: bool) -> anyhow::Result<Self> {
        let take = || Receiver::from_owned_fd(std::io::stdin().as_fd().try_clone_to_owned()?);
        Ok(Self(leashed.then(take).transpose().context("standard input is no pipe that --leashed could watch")?))
    }

    /// Returns when nobody holds it any more.
    pub(crate) async fn cut(&self) {
        let Some(pipe) = &self.0 else { return std::future::pending().await };
        let mut nothing = [0; 64];
        loop {
            match pipe.readable().await.and_then(|()| pipe.try_read(&mut nothing)) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Ok(1..) => {}
                Ok(0) | Err(_) => return,
            }
        }
    }
}
