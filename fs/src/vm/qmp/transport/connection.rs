//! One connection to a monitor: the greeting, lines in, lines and descriptors out.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::sockopt;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::wire::{Incoming, Lines, says_nothing};
use super::writer::Writer;
use super::{COMMAND_LIMIT, Ended, GREETING_LIMIT};
use crate::error::{Error, Kind, Result};
use crate::vm::qmp::monitor::{Endpoint, Monitor};

/// Lines that wait for the driver: one, since it may be long.
const MAX_WAITING: usize = 1;

/// A host that is gone without a word is noticed after this much silence, and so many questions left unanswered.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_PAUSE: Duration = Duration::from_secs(5);
const KEEPALIVE_QUESTIONS: u32 = 3;

/// A connection after negotiation.
pub(super) struct Connection {
    writer: Writer,
    lines: mpsc::Receiver<io::Result<Vec<u8>>>,
}

impl Connection {
    /// Connects, waits for the greeting and leaves negotiation mode.
    pub(super) async fn open(monitor: &Monitor) -> Result<Self> {
        let endpoint = monitor.endpoint();
        let mut connection = match endpoint {
            Endpoint::Unix(path) => {
                // The queue of a listening socket is full when others wait there already.
                let stream = timeout(GREETING_LIMIT, UnixStream::connect(path))
                    .await
                    .map_err(|_| busy(monitor))?
                    .map_err(|error| cannot_reach(endpoint, error))?;
                let (reader, writer) = stream.into_split();
                Self::over(reader, Writer::Unix(writer))
            }
            Endpoint::Tcp { host, port } => {
                let stream = timeout(GREETING_LIMIT, TcpStream::connect((host.as_str(), *port)))
                    .await
                    .map_err(|_| {
                        let limit = GREETING_LIMIT.as_secs();
                        Error::new(Kind::Gone, format!("cannot reach {endpoint}: no answer within {limit} s"))
                    })?
                    .and_then(|stream| tune(&stream).map(|()| stream))
                    .map_err(|error| cannot_reach(endpoint, error))?;
                Box::pin(Self::over_tcp(stream, monitor, host)).await?
            }
        };
        match timeout(GREETING_LIMIT, connection.negotiate()).await {
            Ok(Ok(())) => Ok(connection),
            Ok(Err(error)) => Err(unfriendly(monitor, error)),
            Err(_) => Err(busy(monitor)),
        }
    }

    async fn over_tcp(stream: TcpStream, monitor: &Monitor, host: &str) -> Result<Self> {
        let Some(tls) = monitor.tls() else {
            let (reader, writer) = stream.into_split();
            return Ok(Self::over(reader, Writer::Tcp(writer)));
        };
        let stream = timeout(GREETING_LIMIT, tls.protect(stream, host)).await.map_err(|_| busy(monitor))?;
        let stream = stream.map_err(|error| {
            let kind = match error.kind() {
                nbd_pool::ErrorKind::Untrusted | nbd_pool::ErrorKind::Refused => Kind::Denied,
                _ => Kind::Gone,
            };
            Error::with_source(kind, format!("cannot reach {} over TLS", monitor.endpoint()), error)
        })?;
        let (reader, writer) = tokio::io::split(stream);
        Ok(Self::over(reader, Writer::Tls(writer)))
    }

    fn over<R>(reader: R, writer: Writer) -> Self
    where
        R: AsyncRead + Unpin + Send + 'static,
    {
        let (give, lines) = mpsc::channel(MAX_WAITING);
        tokio::spawn(cut_lines(reader, give));
        Self { writer, lines }
    }

    async fn negotiate(&mut self) -> Result<()> {
        let invalid = |why: &str| Error::new(Kind::Invalid, why);
        loop {
            let line = self.next().await.map_err(|why| Error::new(Kind::Gone, why))?;
            match Incoming::parse(&line).map_err(|why| invalid(&why))? {
                Incoming::Greeting => break,
                // What a client that died did not read any more, QEMU may say to the next one first.
                Incoming::Event { .. } | Incoming::Answer { .. } => {}
                Incoming::Other => return Err(invalid("no QMP greeting; is this a QMP socket?")),
            }
        }
        self.write(&json!({"execute": "qmp_capabilities"}), None).await?;
        loop {
            let line = self.next().await.map_err(|why| Error::new(Kind::Gone, why))?;
            match Incoming::parse(&line).map_err(|why| invalid(&why))? {
                Incoming::Answer { outcome: Ok(_), .. } => return Ok(()),
                Incoming::Event { .. } => {}
                _ => return Err(invalid("capabilities negotiation failed")),
            }
        }
    }

    /// The next line, or why there is none. Giving up on it loses nothing.
    pub(super) async fn next(&mut self) -> std::result::Result<Vec<u8>, String> {
        match self.lines.recv().await {
            Some(Ok(line)) => Ok(line),
            Some(Err(error)) => Err(format!("the QMP connection broke: {error}")),
            None => Err("QEMU closed the QMP connection".to_owned()),
        }
    }

    /// Sends a command, and a descriptor beside it.
    pub(super) async fn write(&mut self, command: &Value, descriptor: Option<OwnedFd>) -> Result<()> {
        let mut line = command.to_string().into_bytes();
        line.push(b'\n');
        let sent = timeout(COMMAND_LIMIT, self.writer.send(&line, descriptor)).await;
        sent.map_err(|_| Error::new(Kind::Timeout, "QEMU does not read its QMP socket"))?
            .map_err(|error| Error::with_source(Kind::Gone, "cannot write to the QMP socket", error))
    }
}

/// Commands are small and waited for; events may be far apart, and their end must be noticed all the same.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_PAUSE)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_QUESTIONS)?;
    Ok(())
}

fn busy(monitor: &Monitor) -> Error {
    let plain = matches!(monitor.endpoint(), Endpoint::Tcp { .. }) && monitor.tls().is_none();
    let tls = if plain { " (or it waits for TLS: then the mount option tls= is needed)" } else { "" };
    Error::new(
        Kind::Busy,
        format!(
            "no greeting from {} within {} s: QEMU serves one client per QMP socket, and another one has this{tls}; \
             give the machine a QMP socket for pullfs alone",
            monitor.endpoint(),
            GREETING_LIMIT.as_secs()
        ),
    )
}

fn cannot_reach(endpoint: &Endpoint, error: io::Error) -> Error {
    let what = match error.kind() {
        io::ErrorKind::NotFound => "there is no such socket",
        io::ErrorKind::ConnectionRefused => "nobody listens there; does the machine run?",
        io::ErrorKind::PermissionDenied => "this user may not connect to it",
        _ => "connecting failed",
    };
    let context = format!("cannot reach {endpoint}: {what}");
    match error.kind() {
        // A port of another host where nobody listens may as well be a firewall's doing.
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused if endpoint.is_of_this_host() => {
            Error::with_source(Kind::Gone, context, Ended(error))
        }
        _ => Error::with_source(Kind::Gone, context, error),
    }
}

/// Explains why nothing came of a connection. A server learns who its client is only after the client's part of the TLS
/// handshake is over, and says no by leaving.
fn unfriendly(monitor: &Monitor, error: Error) -> Error {
    match (monitor.endpoint(), monitor.tls()) {
        (endpoint @ Endpoint::Tcp { .. }, Some(tls)) if error.kind() == Kind::Gone => {
            error.context(format!("cannot reach {endpoint} over TLS: {}", tls.rejected()))
        }
        (endpoint, _) => error.context(format!("{endpoint} does not speak QMP")),
    }
}

async fn cut_lines<R: AsyncRead + Unpin>(mut reader: R, give: mpsc::Sender<io::Result<Vec<u8>>>) {
    let mut lines = Lines::default();
    let mut chunk = vec![0; 64 << 10];
    loop {
        let got = tokio::select! {
            got = reader.read(&mut chunk) => got,
            () = give.closed() => return,
        };
        let got = match got {
            Ok(0) => return,
            Ok(got) => got,
            Err(error) => {
                // The driver may be gone already; then nobody needs to know.
                give.send(Err(error)).await.ok();
                return;
            }
        };
        let mut rest = &chunk[..got];
        loop {
            let (last, next) = match lines.next(&mut rest) {
                Ok(None) => break,
                Ok(Some(line)) if says_nothing(&line) => continue,
                Ok(Some(line)) => (false, Ok(line)),
                Err(error) => (true, Err(io::Error::other(error))),
            };
            if give.send(next).await.is_err() || last {
                return;
            }
        }
    }
}
