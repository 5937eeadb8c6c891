//! From an address to a connection that is ready for requests.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::config::{Address, Config};
use crate::connection::{Connection, Limits, Socket};
use crate::error::{Error, ErrorKind, sanitise};
use crate::handshake::{Negotiated, agree, negotiate, start_tls};
use crate::meter::Meter;
use crate::tls;

/// All that is needed to make one more connection.
pub(super) struct Dialer {
    address: Address,
    export: String,
    contexts: Vec<String>,
    pub(super) config: Config,
    counters: Arc<Meter>,
}

impl fmt::Display for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "export {:?} at {}", sanitise(self.export.as_bytes()), self.address)
    }
}

impl Dialer {
    pub(super) fn new(
        address: Address,
        export: &str,
        contexts: &[String],
        config: Config,
        counters: Arc<Meter>,
    ) -> Self {
        // A context asked for twice is granted once; asking once keeps the answer plain.
        let mut wanted: Vec<String> = Vec::new();
        for context in contexts {
            if !wanted.contains(context) {
                wanted.push(context.clone());
            }
        }
        Self { address, export: export.to_owned(), contexts: wanted, config, counters }
    }

    /// Connects and shakes hands, once, within the limits.
    pub(super) async fn dial(&self) -> Result<Connection, Error> {
        match &self.address {
            Address::Unix(path) => {
                let mut stream = self.connect(UnixStream::connect(path)).await?;
                if let Some(tls) = &self.config.tls {
                    return Box::pin(self.protected(stream, tls, tls::UNIX_NAME)).await;
                }
                let negotiated = self.shake_hands(&mut stream).await?;
                let stream = stream.into_std().map_err(|error| self.failed(error))?;
                self.start_on_thread(stream.into(), negotiated)
            }
            Address::Tcp { host, port } => {
                let mut stream = self.connect(TcpStream::connect((host.as_str(), *port))).await?;
                // Requests are small and waited for.
                stream.set_nodelay(true).map_err(|error| self.failed(error))?;
                if let Some(tls) = &self.config.tls {
                    return Box::pin(self.protected(stream, tls, host)).await;
                }
                let negotiated = self.shake_hands(&mut stream).await?;
                let stream = stream.into_std().map_err(|error| self.failed(error))?;
                self.start_on_thread(stream.into(), negotiated)
            }
        }
    }

    async fn connect<S>(&self, connecting: impl Future<Output = std::io::Result<S>>) -> Result<S, Error> {
        let limit = self.config.connect_timeout;
        match timeout(limit, connecting).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(self.failed(error)),
            Err(_) => Err(Error::new(ErrorKind::Connect, format!("{self} within {limit:?}"))),
        }
    }

    fn failed(&self, error: std::io::Error) -> Error {
        Error::new(ErrorKind::Connect, self.to_string()).with_source(error)
    }

    async fn shake_hands<S>(&self, stream: &mut S) -> Result<Negotiated, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.in_time(negotiate(stream, &self.export, &self.contexts)).await
    }

    /// Shakes hands by way of TLS with a server that is to be `name`. The future is a large one.
    async fn protected<S>(&self, mut stream: S, tls: &tls::Client, name: &str) -> Result<Connection, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shaking = async {
            start_tls(&mut stream).await?;
            let mut stream = tls.protect(stream, name).await?;
            let agreed = agree(&mut stream, &self.export, &self.contexts).await;
            let negotiated = agreed.map_err(|error| tls.explain(error))?;
            Ok((stream, negotiated))
        };
        let (stream, negotiated) = self.in_time(shaking).await?;
        let (reader, writer) = tokio::io::split(stream);
        Ok(self.start(reader, writer, negotiated))
    }

    async fn in_time<T>(&self, shaking: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let limit = self.config.handshake_timeout;
        match timeout(limit, shaking).await {
            Ok(Ok(shaken)) => Ok(shaken),
            Ok(Err(error)) => Err(Error::new(error.kind(), self.to_string()).with_source(error)),
            Err(_) => Err(Error::new(ErrorKind::Handshake, format!("{self} within {limit:?}"))),
        }
    }

    fn start<R, W>(&self, reader: R, writer: W, negotiated: Negotiated) -> Connection
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        Connection::start(reader, writer, negotiated, self.limits(), Arc::clone(&self.counters))
    }

    fn start_on_thread(&self, stream: OwnedFd, negotiated: Negotiated) -> Result<Connection, Error> {
        let limits = self.limits();
        let socket = Socket::new(stream, limits.request_timeout);
        let started = socket
            .and_then(|socket| Connection::start_on_thread(socket, negotiated, limits, Arc::clone(&self.counters)));
        started.map_err(|error| self.failed(error))
    }

    fn limits(&self) -> Limits {
        Limits { requests: self.config.max_in_flight_requests, request_timeout: self.config.request_timeout }
    }
}
