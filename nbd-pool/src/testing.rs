//! A server that does what a test tells it to, byte by byte if need be.
//!
//! [`Listener`] listens on a unix socket in a directory of its own, [`Offer`] says what its
//! handshake promises, [`Peer`] is one accepted client: it gives the requests it sees and sends
//! whatever it is handed. [`Wire`] builds replies, right ones and wrong ones. A test that needs
//! no faults calls [`Peer::serve`]. [`pki`] makes certificates.

pub mod fuzz;
pub mod pki;
mod wire;

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::config::Address;
use crate::info::BlockSize;
use crate::proto::option::{self as nbd};
use crate::proto::{self, Headers};
use crate::wide;
pub use wire::{Framing, Seen, Wire, option_reply};

/// What the handshake of a scripted server offers.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Size of the export in bytes.
    pub size: u64,
    /// Whether to set `NBD_FLAG_CAN_MULTI_CONN`.
    pub multi_conn: bool,
    /// Whether to set `NBD_FLAG_BLOCK_STATUS_PAYLOAD`.
    pub status_filter: bool,
    /// Sent in answer to `NBD_OPT_GO`, if any.
    pub block_size: Option<BlockSize>,
    /// The best framing it knows.
    pub framing: Framing,
    /// Contexts that it grants, with their ids, if asked for.
    pub contexts: Vec<(u32, String)>,
    /// Refuse the export with this option reply.
    pub refuse: Option<u32>,
}

impl Default for Offer {
    fn default() -> Self {
        Self {
            size: 1 << 20,
            multi_conn: false,
            status_filter: false,
            block_size: None,
            framing: Framing::Structured,
            contexts: Vec::new(),
            refuse: None,
        }
    }
}

/// A socket that scripted servers are reached at. Its directory goes with it.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    directory: tempfile::TempDir,
}

impl Listener {
    /// Listens in a fresh directory.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn bind() -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let socket = UnixListener::bind(directory.path().join("nbd.sock"))?;
        Ok(Self { socket, directory })
    }

    /// Where a pool finds it.
    pub fn address(&self) -> Address {
        Address::Unix(self.directory.path().join("nbd.sock"))
    }

    /// Waits for a client and says nothing to it.
    ///
    /// # Errors
    /// Those of the operating system.
    pub async fn accept_silent(&self) -> io::Result<UnixStream> {
        Ok(self.socket.accept().await?.0)
    }

    /// Waits for a client and shakes hands as offered.
    ///
    /// # Errors
    /// `UnexpectedEof` if the client leaves during the handshake, `InvalidData` if it breaks it.
    pub async fn accept(&self, offer: &Offer) -> io::Result<Peer<UnixStream>> {
        Peer::shake_hands(self.accept_silent().await?, offer).await
    }
}

/// The server's end of one connection, after the handshake.
#[derive(Debug)]
pub struct Peer<S> {
    stream: S,
    wire: Wire,
    /// The contexts that the client asked for, with their ids.
    granted: Vec<(u32, String)>,
}

/// What [`Peer::serve`] serves.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// The bytes of the export.
    pub content: Vec<u8>,
    /// Context name, and its extents as (length, flags) from the start of the export to its end.
    pub status: Vec<(String, Vec<(u64, u64)>)>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    /// Shakes hands on a fresh stream.
    ///
    /// # Errors
    /// As [`Listener::accept`].
    pub async fn shake_hands(stream: S, offer: &Offer) -> io::Result<Self> {
        let mut peer = Self { stream, wire: Wire::new(Framing::Simple), granted: Vec::new() };
        let mut greeting = Vec::new();
        greeting.extend(nbd::NBD_MAGIC.to_be_bytes());
        greeting.extend(nbd::OPTION_MAGIC.to_be_bytes());
        greeting.extend((nbd::FLAG_FIXED_NEWSTYLE | nbd::FLAG_NO_ZEROES).to_be_bytes());
        peer.send(&greeting).await?;
        let flags = peer.stream.read_u32().await?;
        expect(flags == 3, "client flags")?;
        while !peer.option(offer).await? {}
        Ok(peer)
    }

    /// Answers one option; `true` when transmission begins.
    async fn option(&mut self, offer: &Offer) -> io::Result<bool> {
        expect(self.stream.read_u64().await? == nbd::OPTION_MAGIC, "option magic")?;
        let option = self.stream.read_u32().await?;
        let length = self.stream.read_u32().await?;
        expect(length <= 1 << 20, "option length")?;
        let mut data = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        self.stream.read_exact(&mut data).await?;
        let mut answers: Vec<(u32, Vec<u8>)> = Vec::new();
        match option {
            nbd::OPT_EXTENDED_HEADERS if offer.framing == Framing::Extended => {
                self.wire = Wire::new(Framing::Extended);
                answers.push((nbd::REP_ACK, Vec::new()));
            }
            nbd::OPT_STRUCTURED_REPLY if offer.framing != Framing::Simple => {
                self.wire = Wire::new(Framing::Structured);
                answers.push((nbd::REP_ACK, Vec::new()));
            }
            nbd::OPT_SET_META_CONTEXT => {
                self.granted = wire::queries(&data)?
                    .iter()
                    .filter_map(|query| offer.contexts.iter().find(|(_, name)| name == query))
                    .cloned()
                    .collect();
                // In the server's own order, as the spec allows.
                for (id, name) in self.granted.iter().rev() {
                    let payload = [&id.to_be_bytes()[..], name.as_bytes()].concat();
                    answers.push((nbd::REP_META_CONTEXT, payload));
                }
                answers.push((nbd::REP_ACK, Vec::new()));
            }
            nbd::OPT_GO => match offer.refuse {
                Some(code) => answers.push((code, b"as scripted".to_vec())),
                None => answers.extend(go_answers(offer)),
            },
            nbd::OPT_ABORT => answers.push((nbd::REP_ACK, Vec::new())),
            _ => answers.push((nbd::REP_ERR_UNSUP, Vec::new())),
        }
        let done = option == nbd::OPT_GO && offer.refuse.is_none();
        for (kind, payload) in answers {
            self.send(&wire::option_reply(option, kind, &payload)).await?;
        }
        Ok(done)
    }

    /// The stream, for whoever goes on by other means.
    pub fn into_stream(self) -> S {
        self.stream
    }

    /// Builds replies in the framing that was negotiated.
    pub fn wire(&self) -> Wire {
        self.wire
    }

    /// The next request, or `None` when the client closed the connection.
    ///
    /// # Errors
    /// `InvalidData` for what is not a request in the negotiated framing.
    pub async fn request(&mut self) -> io::Result<Option<Seen>> {
        let mut header = vec![0; self.wire.request_length()];
        match self.stream.read_exact(&mut header).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            result => result?,
        };
        let mut seen = self.wire.decode_request(&header)?;
        if seen.flags & proto::CMD_FLAG_PAYLOAD_LEN != 0 {
            expect(seen.length == 12, "payload of a request")?;
            let effect = self.stream.read_u64().await?;
            seen.only = Some(self.stream.read_u32().await?);
            seen.length = effect;
        }
        Ok(Some(seen))
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// Those of the stream.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Serves a disk, as a server should, until the client leaves.
    ///
    /// # Errors
    /// Those of the stream, and `InvalidData` for a request that breaks the protocol.
    pub async fn serve(&mut self, disk: &Disk) -> io::Result<()> {
        while let Some(seen) = self.request().await? {
            if seen.command == proto::CMD_DISC {
                break;
            }
            let reply = self.reply(disk, &seen)?;
            self.send(&reply).await?;
        }
        Ok(())
    }

    /// The right reply to one request.
    ///
    /// # Errors
    /// `InvalidData` for a request that breaks the protocol.
    pub fn reply(&self, disk: &Disk, seen: &Seen) -> io::Result<Vec<u8>> {
        match seen.command {
            proto::CMD_READ => {
                let range = usize::try_from(seen.offset).ok().zip(usize::try_from(seen.length).ok());
                let data = range.and_then(|(offset, length)| disk.content.get(offset..offset.checked_add(length)?));
                let data = data.ok_or_else(|| invalid("a read outside the export"))?;
                Ok(self.wire.data(seen, seen.offset, data, true))
            }
            proto::CMD_BLOCK_STATUS => {
                let mut reply = Vec::new();
                for (id, name) in &self.granted {
                    if seen.only.is_none_or(|only| only == *id) {
                        let status = disk.status.iter().find(|(context, _)| context == name);
                        let extents = status.map_or(&[][..], |(_, extents)| extents);
                        let size = wide(disk.content.len());
                        let extents = wire::extents_within(extents, seen, size);
                        reply.extend(self.wire.status(seen, *id, &extents, false));
                    }
                }
                reply.extend(self.wire.none(seen));
                Ok(reply)
            }
            _ => Err(invalid("a command that is not read-only")),
        }
    }
}

fn go_answers(offer: &Offer) -> Vec<(u32, Vec<u8>)> {
    let mut flags = nbd::FLAG_HAS_FLAGS | nbd::FLAG_READ_ONLY;
    if offer.multi_conn {
        flags |= nbd::FLAG_CAN_MULTI_CONN;
    }
    if offer.status_filter {
        flags |= nbd::FLAG_BLOCK_STATUS_PAYLOAD;
    }
    let mut export = nbd::INFO_EXPORT.to_be_bytes().to_vec();
    export.extend(offer.size.to_be_bytes());
    export.extend(flags.to_be_bytes());
    let mut answers = vec![(nbd::REP_INFO, export)];
    if let Some(BlockSize { minimum, preferred, maximum }) = offer.block_size {
        let mut sizes = nbd::INFO_BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [minimum, preferred, maximum] {
            sizes.extend(size.to_be_bytes());
        }
        answers.push((nbd::REP_INFO, sizes));
    }
    answers.push((nbd::REP_ACK, Vec::new()));
    answers
}

impl From<Framing> for Headers {
    fn from(framing: Framing) -> Self {
        match framing {
            Framing::Simple | Framing::Structured => Headers::Compact,
            Framing::Extended => Headers::Extended,
        }
    }
}

fn expect(holds: bool, what: &str) -> io::Result<()> {
    if holds { Ok(()) } else { Err(invalid(what)) }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}
