//! The fixed newstyle handshake (spec "Handshake phase"): from a fresh socket to transmission.
//!
//! ```text
//! greeting ─▶ EXTENDED_HEADERS ─ack────────────────────▶ SET_META_CONTEXT ─▶ GO ─▶ transmission
//!    │              ▲   └─no─▶ STRUCTURED_REPLY ─ack─────────▲  (if contexts are wanted)
//!    │              │                └─no─▶ Unsupported
//!    └─▶ STARTTLS ─ack, TLS handshake   (if TLS is wanted)
//!            └─no─▶ Unsupported
//! ```
//! [`start_tls`] and [`agree`] are the two halves of the way with TLS, [`negotiate`] is the one without. Nothing that came
//! before TLS is used after it (spec "`NBD_OPT_STARTTLS`").
//!
//! `NBD_OPT_EXPORT_NAME` is never sent: it cannot report an error, and after it the size
//! constraints are not known. Whoever calls sets the time limit over all of it.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::{Error, ErrorKind, sanitise};
use crate::info::{BlockSize, ExportInfo};
use crate::proto::Headers;
use crate::proto::option::{self, Info, ReplyHeader, garbage};

/// Most information items that a server may send before it acknowledges.
const MAX_INFOS: usize = 64;

/// What a connection and its server agreed on.
#[derive(Clone, Debug)]
pub(crate) struct Negotiated {
    pub(crate) info: ExportInfo,
    pub(crate) headers: Headers,
    /// The ids of `info.contexts` on this connection, in the same order.
    pub(crate) context_ids: Vec<u32>,
    /// A block-status request can name the one context it wants.
    pub(crate) status_filter: bool,
}

/// Takes `stream` from the greeting to the transmission phase of `export`.
///
/// # Errors
/// `Refused`, `Unsupported`, `Handshake` for what is not NBD, `Disconnected`.
pub(crate) async fn negotiate<S>(stream: &mut S, export: &str, contexts: &[String]) -> Result<Negotiated, Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    Dialogue { stream }.greet().await?;
    agree(stream, export, contexts).await
}

/// Takes `stream` from the greeting to where the TLS handshake begins. It never reads further than that.
///
/// # Errors
/// As [`negotiate`]; `Unsupported` if the server has no TLS to offer.
pub(crate) async fn start_tls<S>(stream: &mut S) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut dialogue = Dialogue { stream };
    dialogue.greet().await?;
    let result = dialogue.ask(option::OPT_STARTTLS).await.and_then(|answer| {
        answer.map_err(|refusal| {
            let reason = "it offers no TLS, and nothing is sent in plain text where TLS is asked for";
            Error::new(ErrorKind::Unsupported, reason).with_source(refusal)
        })
    });
    dialogue.leave_if_refused(result).await
}

/// Takes a stream behind its greeting, or behind its TLS handshake, to the transmission phase of `export`.
///
/// # Errors
/// As [`negotiate`].
pub(crate) async fn agree<S>(stream: &mut S, export: &str, contexts: &[String]) -> Result<Negotiated, Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut dialogue = Dialogue { stream };
    let result = dialogue.haggle(export, contexts).await;
    dialogue.leave_if_refused(result).await
}

struct Dialogue<'a, S> {
    stream: &'a mut S,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Dialogue<'_, S> {
    async fn greet(&mut self) -> Result<(), Error> {
        let magic = self.read_u64().await?;
        if magic != option::NBD_MAGIC {
            return Err(garbage(format!("not an NBD server: it begins with {magic:#018x}")));
        }
        match self.read_u64().await? {
            option::OPTION_MAGIC => {}
            option::OLDSTYLE_MAGIC => {
                return Err(Error::new(ErrorKind::Unsupported, "an oldstyle server"));
            }
            magic => return Err(garbage(format!("not an NBD server: then {magic:#018x}"))),
        }
        let flags = self.stream.read_u16().await.map_err(lost)?;
        if flags & option::FLAG_FIXED_NEWSTYLE == 0 {
            return Err(Error::new(ErrorKind::Unsupported, "a server before fixed newstyle"));
        }
        let answer = flags & (option::FLAG_FIXED_NEWSTYLE | option::FLAG_NO_ZEROES);
        self.stream.write_u32(u32::from(answer)).await.map_err(lost)?;
        self.stream.flush().await.map_err(lost)
    }

    /// The soft disconnect that the spec asks for. The server may be gone already: no matter.
    async fn leave_if_refused<T>(&mut self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &result
            && matches!(error.kind(), ErrorKind::Refused | ErrorKind::Unsupported)
        {
            let _ = self.send(option::OPT_ABORT, &[]).await;
        }
        result
    }

    async fn haggle(&mut self, export: &str, contexts: &[String]) -> Result<Negotiated, Error> {
        let headers = self.agree_on_headers().await?;
        let granted = if contexts.is_empty() { Vec::new() } else { self.select_contexts(export, contexts).await? };
        let (size, flags, block_size) = self.go(export).await?;
        let (context_ids, contexts) = granted.into_iter().unzip();
        Ok(Negotiated {
            info: ExportInfo {
                size,
                read_only: flags & option::FLAG_READ_ONLY != 0,
                can_trim: flags & option::FLAG_SEND_TRIM != 0,
                multi_conn: flags & option::FLAG_CAN_MULTI_CONN != 0,
                block_size,
                extended_headers: headers == Headers::Extended,
                contexts,
            },
            headers,
            context_ids,
            status_filter: headers == Headers::Extended && flags & option::FLAG_BLOCK_STATUS_PAYLOAD != 0,
        })
    }

    async fn agree_on_headers(&mut self) -> Result<Headers, Error> {
        if self.ask(option::OPT_EXTENDED_HEADERS).await?.is_ok() {
            return Ok(Headers::Extended);
        }
        match self.ask(option::OPT_STRUCTURED_REPLY).await? {
            Ok(()) => Ok(Headers::Compact),
            Err(refusal) => {
                Err(Error::new(ErrorKind::Unsupported, "structured replies are needed to read safely")
                    .with_source(refusal))
            }
        }
    }

    /// Sends an option without data. `Ok(Err)` where the server does not have it.
    async fn ask(&mut self, code: u32) -> Result<Result<(), Error>, Error> {
        self.send(code, &[]).await?;
        let (header, payload) = self.reply(code).await?;
        match header.kind {
            option::REP_ACK => Ok(Ok(())),
            // Whatever is asked for next would get the same answer.
            option::REP_ERR_TLS_REQD | option::REP_ERR_SHUTDOWN => Err(option::refusal(header.kind, &payload)),
            kind if header.is_error() => Ok(Err(option::refusal(kind, &payload))),
            kind => Err(garbage(format!("reply {kind} to option {code}"))),
        }
    }

    /// Selects contexts; gives those granted with their ids, in the order asked for.
    async fn select_contexts(&mut self, export: &str, contexts: &[String]) -> Result<Vec<(u32, String)>, Error> {
        let code = option::OPT_SET_META_CONTEXT;
        self.send(code, &option::set_meta_context(export, contexts)?).await?;
        let mut granted: Vec<Option<u32>> = vec![None; contexts.len()];
        loop {
            let (header, payload) = self.reply(code).await?;
            match header.kind {
                option::REP_ACK => break,
                option::REP_META_CONTEXT => {
                    let (id, name) = option::decode_meta_context(&payload)?;
                    let asked = contexts.iter().position(|context| *context == name);
                    let slot = asked.map(|index| &mut granted[index]);
                    let Some(slot @ None) = slot else {
                        let name = sanitise(name.as_bytes());
                        return Err(garbage(format!("context {name:?}, not asked for")));
                    };
                    *slot = Some(id);
                }
                option::REP_ERR_UNSUP => return Ok(Vec::new()),
                kind if header.is_error() => return Err(option::refusal(kind, &payload)),
                kind => return Err(garbage(format!("reply {kind} to option {code}"))),
            }
        }
        let granted: Vec<_> =
            granted.into_iter().zip(contexts).filter_map(|(id, name)| id.map(|id| (id, name.clone()))).collect();
        let mut ids: Vec<u32> = granted.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids.dedup();
        if ids.len() != granted.len() {
            return Err(garbage("two contexts with one id"));
        }
        Ok(granted)
    }

    /// Enters the transmission phase; gives size, transmission flags and block sizes.
    async fn go(&mut self, export: &str) -> Result<(u64, u16, BlockSize), Error> {
        self.send(option::OPT_GO, &option::go(export)?).await?;
        let mut described = None;
        let mut block_size = None;
        for _ in 0..MAX_INFOS {
            let (header, payload) = self.reply(option::OPT_GO).await?;
            match header.kind {
                option::REP_INFO => match Info::decode(&payload)? {
                    Info::Export { size, flags } => described = Some((size, flags)),
                    Info::BlockSize(sizes) => block_size = Some(sizes),
                    Info::Other => {}
                },
                option::REP_ACK => {
                    let (size, flags) =
                        described.ok_or_else(|| garbage("transmission began without NBD_INFO_EXPORT"))?;
                    return Ok((size, flags, block_size.unwrap_or_default()));
                }
                // The spec's fall-back, NBD_OPT_EXPORT_NAME, is not ours: see the module head.
                option::REP_ERR_UNSUP => {
                    return Err(Error::new(ErrorKind::Unsupported, "NBD_OPT_GO is needed"));
                }
                kind if header.is_error() => return Err(option::refusal(kind, &payload)),
                kind => return Err(garbage(format!("reply {kind} to NBD_OPT_GO"))),
            }
        }
        Err(garbage(format!("more than {MAX_INFOS} replies to NBD_OPT_GO")))
    }

    async fn send(&mut self, code: u32, data: &[u8]) -> Result<(), Error> {
        let mut message = Vec::with_capacity(16 + data.len());
        option::encode(code, data, &mut message);
        self.stream.write_all(&message).await.map_err(lost)?;
        self.stream.flush().await.map_err(lost)
    }

    async fn reply(&mut self, code: u32) -> Result<(ReplyHeader, Vec<u8>), Error> {
        let mut header = [0; option::REPLY_HEADER];
        self.stream.read_exact(&mut header).await.map_err(lost)?;
        let header = ReplyHeader::decode(code, &header)?;
        let mut payload = vec![0; header.length];
        self.stream.read_exact(&mut payload).await.map_err(lost)?;
        Ok((header, payload))
    }

    async fn read_u64(&mut self) -> Result<u64, Error> {
        self.stream.read_u64().await.map_err(lost)
    }
}

fn lost(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Disconnected, "during the handshake").with_source(error)
}

#[cfg(test)]
mod tests;
