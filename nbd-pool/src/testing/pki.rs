//! Certificates for tests, in directories as QEMU and [`crate::tls`] read them.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
    date_time_ymd,
};

use crate::tls::{CA, CERTIFICATE, KEY, REVOKED};

/// The names that a server on the loopback interface or on a unix socket is reached by.
pub const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// The serial number of every server's certificate.
const SERVER: u64 = 7;

/// A CA.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// Makes one of this name.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        Self { issuer: CertifiedIssuer::self_signed(params, key).expect("a CA") }
    }

    /// Makes `dir` that of a server with these names.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn server(&self, dir: &Path, names: &[&str]) -> io::Result<()> {
        self.server_until(dir, names, 2099)
    }

    /// The same, with a certificate that expires when this year begins.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn server_until(&self, dir: &Path, names: &[&str], year: i32) -> io::Result<()> {
        let mut params = params(names, ExtendedKeyUsagePurpose::ServerAuth);
        params.serial_number = Some(SerialNumber::from(SERVER));
        params.not_after = date_time_ymd(year, 1, 1);
        self.fill(dir)?;
        let (certificate, key) = self.issue(&params);
        write(dir, "server-cert.pem", &certificate.pem())?;
        write(dir, "server-key.pem", &key.serialize_pem())
    }

    /// Makes `dir` that of a client that trusts this CA, with a certificate of it to show.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn client(&self, dir: &Path) -> io::Result<()> {
        self.fill(dir)?;
        self.certify(dir)
    }

    /// Puts a client's certificate of this CA into `dir`, which may trust another one.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn certify(&self, dir: &Path) -> io::Result<()> {
        let (certificate, key) = self.issue(&params(&["client"], ExtendedKeyUsagePurpose::ClientAuth));
        write(dir, CERTIFICATE, &certificate.pem())?;
        write(dir, KEY, &key.serialize_pem())
    }

    /// Makes `dir` that of a client that trusts this CA and has no certificate.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn fill(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        write(dir, CA, &self.issuer.pem())
    }

    /// Adds this CA's revocation list to a client's `dir`, with every server's certificate on it, or none.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn revoke(&self, dir: &Path, servers: bool) -> io::Result<()> {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(SERVER),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2099, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: if servers { vec![revoked] } else { Vec::new() },
            key_identifier_method: KeyIdMethod::Sha256,
        };
        write(dir, REVOKED, &list.signed_by(&self.issuer).expect("a list").pem().expect("PEM"))
    }

    fn issue(&self, params: &CertificateParams) -> (Certificate, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        (certificate, key)
    }
}

fn params(names: &[&str], purpose: ExtendedKeyUsagePurpose) -> CertificateParams {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).expect("names that a certificate can have");
    params.distinguished_name.push(DnType::CommonName, "pullfs test");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![purpose];
    params
}

fn write(dir: &Path, name: &str, text: &str) -> io::Result<()> {
    let file = dir.join(name);
    fs::write(&file, text)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))
}
