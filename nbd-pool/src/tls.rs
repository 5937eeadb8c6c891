//! TLS towards a server whose certificate a CA of the user's has signed (x509), for NBD and for whoever else needs it.
//!
//! A [`Client`] is made of a directory in the layout of QEMU's `tls-creds-x509`, and never of anything else: neither the
//! system's CAs nor a server's word count. TLS 1.3 alone is spoken, which every QEMU that NBD is read from has. Sessions
//! are not resumed, so each connection checks the server's certificate anew.
//!
//! In NBD the way to TLS is `NBD_OPT_STARTTLS`. What was said before it is not believed afterwards: it is the first option
//! that is sent, nothing is read ahead of its answer, and so bytes that somebody slips in behind that answer reach the TLS
//! handshake, which they break.

mod credentials;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
pub use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, CertificateError, ClientConfig};

use crate::error::{Error, ErrorKind};

pub use credentials::{CA, CERTIFICATE, KEY, REVOKED};

/// The name that a server behind a unix socket must have: there is no other to compare with.
pub const UNIX_NAME: &str = "localhost";

/// Who is trusted, and what is shown of oneself. Clones share it.
#[derive(Clone)]
pub struct Client {
    config: Arc<ClientConfig>,
    dir: PathBuf,
    /// Whether there is a certificate to show.
    certified: bool,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("dir", &self.dir).field("certified", &self.certified).finish_non_exhaustive()
    }
}

impl Client {
    /// Reads [`CA`], and [`CERTIFICATE`] with [`KEY`], and [`REVOKED`], where there are any. Files that change later
    /// change nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Credentials`], naming the file: one that is missing or not what it should be, a certificate without
    /// its key, a key that others can read.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let (config, certified) = credentials::load(dir)?;
        Ok(Self { config: Arc::new(config), dir: dir.to_owned(), certified })
    }

    /// Shakes hands over `stream` with the server that is to be `name`, a host name or an address. Whoever calls sets
    /// the time limit.
    ///
    /// # Errors
    /// [`ErrorKind::Untrusted`] if it is not that server, [`ErrorKind::Refused`] if it does not want us,
    /// [`ErrorKind::Handshake`] for what is not TLS, [`ErrorKind::Disconnected`].
    pub async fn protect<S>(&self, stream: S, name: &str) -> Result<TlsStream<S>, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let server = ServerName::try_from(name.to_owned()).map_err(|error| {
            Error::new(ErrorKind::Untrusted, format!("no certificate can be for the name {name:?}")).with_source(error)
        })?;
        let connector = TlsConnector::from(Arc::clone(&self.config));
        connector.connect(server, stream).await.map_err(|error| self.failed(name, error))
    }

    /// What to say when the stream ends before the server has said anything over TLS: it learns who we are only after
    /// our side of the handshake is over.
    pub fn rejected(&self) -> String {
        let ended = "the server ended the connection right after the TLS handshake, as one does that";
        let dir = self.dir.display();
        if self.certified {
            format!("{ended} does not accept the client certificate {dir}/{CERTIFICATE}")
        } else {
            format!("{ended} wants a client certificate: there is no {CERTIFICATE} in {dir}")
        }
    }

    /// The same of an error of what came after the handshake.
    pub(crate) fn explain(&self, error: Error) -> Error {
        match error.kind() {
            ErrorKind::Disconnected => Error::new(ErrorKind::Disconnected, self.rejected()).with_source(error),
            _ => error,
        }
    }

    fn failed(&self, name: &str, error: io::Error) -> Error {
        let dir = self.dir.display();
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
        let (kind, context) = match cause {
            Some(rustls::Error::InvalidCertificate(fault)) => {
                (ErrorKind::Untrusted, format!("the server's certificate {}", self.fault(fault, name)))
            }
            Some(rustls::Error::AlertReceived(_)) => (
                ErrorKind::Refused,
                format!("the server broke off the TLS handshake; does it trust the client certificate in {dir}?"),
            ),
            Some(rustls::Error::InvalidMessage(_)) => {
                (ErrorKind::Handshake, "what answers does not speak TLS".to_owned())
            }
            Some(_) => (ErrorKind::Handshake, "no TLS handshake that is safe".to_owned()),
            None => (ErrorKind::Disconnected, "during the TLS handshake".to_owned()),
        };
        Error::new(kind, context).with_source(error)
    }

    /// What is wrong with a server's certificate, after "the server's certificate".
    fn fault(&self, fault: &CertificateError, name: &str) -> String {
        let dir = self.dir.display();
        match fault {
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("is not for {name}: it needs that as a subject alternative name")
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "has expired".to_owned(),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "is not valid yet".to_owned()
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                format!("is not signed by {dir}/{CA}")
            }
            CertificateError::Revoked => format!("is revoked by {dir}/{REVOKED}"),
            CertificateError::UnknownRevocationStatus
            | CertificateError::ExpiredRevocationList
            | CertificateError::ExpiredRevocationListContext { .. } => {
                format!("may be revoked: {dir}/{REVOKED} is out of date, or of another issuer")
            }
            _ => "cannot be trusted".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;
