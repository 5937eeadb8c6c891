//! The files behind a [`super::Client`], named as QEMU names those of `tls-creds-x509` (QEMU docs/system/tls.rst).

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::client::{Resumption, WebPkiServerVerifier};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, version::TLS13};

use crate::error::{Error, ErrorKind};

/// The CA that signed the server's certificate; several, if the file has several.
pub const CA: &str = "ca-cert.pem";

/// Certificates that were taken back, where there is such a list.
pub const REVOKED: &str = "ca-crl.pem";

/// The client's certificate, where the server wants one, and those up to its CA.
pub const CERTIFICATE: &str = "client-cert.pem";

/// Its private key, not encrypted.
pub const KEY: &str = "client-key.pem";

/// What QEMU keeps pre-shared keys in, for `tls-creds-psk`.
const PRE_SHARED: &str = "keys.psk";

/// Larger than any of these files needs to be, revocation lists of a large CA included.
const MAX_FILE: u64 = 16 << 20;

/// The permissions of others; a group may have the key, as QEMU's own often has.
const OTHERS: u32 = 0o007;

/// The configuration, and whether it has a client certificate.
pub(super) fn load(dir: &Path) -> Result<(ClientConfig, bool), Error> {
    if !dir.join(CA).exists() && dir.join(PRE_SHARED).exists() {
        return Err(bad(dir, PRE_SHARED, &format!("is of no use: pre-shared keys are not supported, {CA} is needed")));
    }
    let mut roots = RootCertStore::empty();
    for certificate in required::<CertificateDer<'_>>(dir, CA)? {
        roots
            .add(certificate)
            .map_err(|error| bad(dir, CA, "has a certificate that is of no use").with_source(error))?;
    }
    let provider = Arc::new(ring::default_provider());
    let mut verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    if let Some(lists) = optional::<CertificateRevocationListDer<'_>>(dir, REVOKED)? {
        verifier = verifier.with_crls(lists).enforce_revocation_expiration();
    }
    let verifier =
        verifier.build().map_err(|error| bad(dir, REVOKED, "is not a list that can be used").with_source(error))?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3")
        .with_webpki_verifier(verifier);
    let pair = pair(dir)?;
    let certified = pair.is_some();
    let mut config = match pair {
        None => config.with_no_client_auth(),
        Some((chain, key)) => config
            .with_client_auth_cert(chain, key)
            .map_err(|error| bad(dir, CERTIFICATE, &format!("does not go with {KEY}")).with_source(error))?,
    };
    config.resumption = Resumption::disabled();
    Ok((config, certified))
}

type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The client's certificates and key, if there are any.
fn pair(dir: &Path) -> Result<Option<Pair>, Error> {
    let chain = optional::<CertificateDer<'_>>(dir, CERTIFICATE)?;
    let mode = std::fs::metadata(dir.join(KEY)).map(|metadata| metadata.mode());
    if let Ok(mode) = mode
        && mode & OTHERS != 0
    {
        let mode = mode & 0o777;
        return Err(bad(
            dir,
            KEY,
            &format!("is open to all users (mode 0{mode:o}): chmod o= it, and think of a new key"),
        ));
    }
    let key = optional::<PrivateKeyDer<'_>>(dir, KEY)?.and_then(|keys| keys.into_iter().next());
    match (chain, key) {
        (Some(chain), Some(key)) => Ok(Some((chain, key))),
        (None, None) => Ok(None),
        (Some(_), None) => Err(bad(dir, KEY, &format!("is missing beside {CERTIFICATE}"))),
        (None, Some(_)) => Err(bad(dir, CERTIFICATE, &format!("is missing beside {KEY}"))),
    }
}

fn required<T: PemObject>(dir: &Path, name: &str) -> Result<Vec<T>, Error> {
    read(dir, name)
        .map_err(|error| bad(dir, name, "cannot be read").with_source(error))
        .and_then(|text| parse(dir, name, &text))
}

/// None if there is no such file.
fn optional<T: PemObject>(dir: &Path, name: &str) -> Result<Option<Vec<T>>, Error> {
    match read(dir, name) {
        Ok(text) => parse(dir, name, &text).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(bad(dir, name, "cannot be read").with_source(error)),
    }
}

fn read(dir: &Path, name: &str) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(dir.join(name))?.take(MAX_FILE).read_to_end(&mut text)?;
    Ok(text)
}

/// All sections of this kind in a file, which must have one; other sections and text between them do no harm.
fn parse<T: PemObject>(dir: &Path, name: &str, text: &[u8]) -> Result<Vec<T>, Error> {
    let sections: Result<Vec<T>, pem::Error> = T::pem_slice_iter(text).collect();
    match sections {
        Ok(sections) if !sections.is_empty() => Ok(sections),
        Ok(_) => Err(bad(dir, name, "has nothing of the kind in PEM, or only encrypted")),
        Err(error) => Err(bad(dir, name, "is not PEM").with_source(error)),
    }
}

fn bad(dir: &Path, name: &str, fault: &str) -> Error {
    Error::new(ErrorKind::Credentials, format!("{} {fault}", dir.join(name).display()))
}
