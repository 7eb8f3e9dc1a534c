//! The settings of TLS: which certificate the node shows to clients, whose certificates it accepts from
//! them, and whether clients without TLS are served.
//!
//! The files are read here, when the settings are checked: at the start and at each reload. A file that is
//! missing or wrong is a setting that breaks a rule. The encrypted connections themselves are in
//! [`crate::net::tls`].

use std::fmt::{self, Write};
use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    SupportedCipherSuite,
};

use super::BadSetting;
use super::raw::{Key, RawConfig};

/// The longest file of certificates or of a key, in bytes.
const FILE_LEN_MAX: u64 = 1 << 20;
/// How many bytes of a certificate's SHA-256 are shown.
const FINGERPRINT_LEN: usize = 8;

/// What the node needs for encrypted connections of clients.
pub struct Tls {
    /// Whether clients without TLS are refused.
    pub required: bool,
    /// What a connection is accepted with.
    pub server: Arc<ServerConfig>,
    files: Files,
}

/// What the files of the settings hold, in PEM.
#[derive(PartialEq, Eq)]
struct Files {
    /// The node's certificate, and those that lead from it to the one that clients trust.
    cert: Vec<u8>,
    key: Vec<u8>,
    /// The certificates that sign those of clients; empty if clients need none.
    ca: Vec<u8>,
}

impl Tls {
    /// Reads and checks the files that the settings name. `None`: there is no TLS.
    ///
    /// # Errors
    /// A setting lacks another one, or its file cannot be read or is not what it should be.
    pub fn of(raw: &RawConfig) -> Result<Option<Arc<Tls>>, BadSetting> {
        let is_given = |key| !raw.text(key).is_empty();
        let has_certificate = is_given(Key::TlsCert);
        let required = raw.parse(Key::Tls, |text| match text {
            "required" => Ok(Some(true)),
            "optional" => Ok(Some(false)),
            "off" => Ok(None),
            "" => Ok(has_certificate.then_some(true)),
            _ => Err("it is required, optional or off".to_owned()),
        })?;
        let lacks = |key, rule: &str| Err(raw.bad(key, rule.to_owned()));
        match (has_certificate, is_given(Key::TlsKey)) {
            (true, false) => return lacks(Key::TlsKey, "the key of --tls-cert must be given, too"),
            (false, true) => {
                return lacks(
                    Key::TlsCert,
                    "the certificate of --tls-key must be given, too",
                );
            }
            _ => {}
        }
        if !has_certificate && is_given(Key::TlsCa) {
            let rule =
                "clients show certificates only over TLS: give --tls-cert and --tls-key, too";
            return lacks(Key::TlsCa, rule);
        }
        let Some(required) = required else {
            return Ok(None);
        };
        if !has_certificate {
            return lacks(
                Key::Tls,
                "TLS needs a certificate: give --tls-cert and --tls-key",
            );
        }
        Tls::read(raw, required).map(|tls| Some(Arc::new(tls)))
    }

    fn read(raw: &RawConfig, required: bool) -> Result<Tls, BadSetting> {
        let files = Files {
            cert: raw.parse(Key::TlsCert, read)?,
            key: raw.parse(Key::TlsKey, read)?,
            ca: raw.parse(Key::TlsCa, |file| match file {
                "" => Ok(Vec::new()),
                file => read(file),
            })?,
        };
        let chain = raw.parse(Key::TlsCert, |_| certificates(&files.cert))?;
        let key = raw.parse(Key::TlsKey, |_| key(&files.key))?;
        let provider = Arc::new(ring::default_provider());
        let signed = raw.parse(Key::TlsCa, |file| match file {
            "" => Ok(None),
            _ => signed_by(certificates(&files.ca)?, &provider).map(Some),
        })?;
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| raw.bad(Key::Tls, error.to_string()))?;
        let server = match (signed, chain.first()) {
            (Some(signed), Some(own)) => server.with_client_cert_verifier(Arc::new(Accepted {
                own: own.clone(),
                signed,
                algorithms: provider.signature_verification_algorithms,
            })),
            _ => server.with_no_client_auth(),
        };
        let server = server.with_single_cert(chain, key);
        let mut server = server.map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                let rule = "it is not the key of the first certificate in --tls-cert";
                raw.bad(Key::TlsKey, rule.to_owned())
            }
            error => raw.bad(Key::TlsCert, format!("it cannot be used: {error}")),
        })?;
        // Clients keep their connections, so that a shortened handshake is worth little. Without
        // sessions nothing of an old certificate outlives a reload.
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Tls {
            required,
            server: Arc::new(server),
            files,
        })
    }

    /// The certificate of this node and its key in PEM, with which the node's own pages connect to its
    /// port.
    pub fn own_pem(&self) -> (&[u8], &[u8]) {
        (&self.files.cert, &self.files.key)
    }

    /// The certificates in PEM that sign those of clients; empty if clients need none.
    pub fn ca_pem(&self) -> &[u8] {
        &self.files.ca
    }

    /// The first bytes of the SHA-256 of the first certificate in the file of a setting, as
    /// hexadecimal digits.
    pub fn fingerprint(&self, key: Key) -> Option<String> {
        let file = match key {
            Key::TlsCert => &self.files.cert,
            Key::TlsCa => &self.files.ca,
            _ => return None,
        };
        let certificate = CertificateDer::from_pem_slice(file).ok()?;
        let sha256 =
            (ring::default_provider().cipher_suites.iter()).find_map(|suite| match suite {
                SupportedCipherSuite::Tls13(suite) => {
                    let hash = suite.common.hash_provider;
                    (hash.output_len() == 32).then_some(hash)
                }
                #[allow(unreachable_patterns)]
                _ => None,
            })?;
        let digest = sha256.hash(&certificate);
        let mut digits = String::new();
        for byte in digest.as_ref().iter().take(FINGERPRINT_LEN) {
            // Writing to a string cannot fail.
            let _ = write!(digits, "{byte:02x}");
        }
        Some(digits)
    }
}

/// Settings are the same if the files have the same content.
impl PartialEq for Tls {
    fn eq(&self, other: &Tls) -> bool {
        self.required == other.required && self.files == other.files
    }
}

impl Eq for Tls {}

/// Without the key.
impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("required", &self.required)
            .field("certificate", &self.fingerprint(Key::TlsCert))
            .field("ca", &self.fingerprint(Key::TlsCa))
            .finish_non_exhaustive()
    }
}

/// Accepts certificates of clients that were signed by a CA, and that of this node: its own pages
/// connect with it.
#[derive(Debug)]
struct Accepted {
    own: CertificateDer<'static>,
    signed: Arc<dyn ClientCertVerifier>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for Accepted {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.signed.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        // That the client has the key, too, is proved by its signature.
        if *end_entity == self.own {
            return Ok(ClientCertVerified::assertion());
        }
        self.signed
            .verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signed
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// What checks that certificates of clients were signed by one of `ca`.
fn signed_by(
    ca: Vec<CertificateDer<'static>>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in ca {
        let added = roots.add(certificate);
        added.map_err(|error| format!("a certificate in the file cannot be used: {error}"))?;
    }
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
    verifier.map_err(|error| error.to_string())
}

/// The certificates of a PEM file, in their order; at least one.
fn certificates(file: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(file).collect();
    let found = found.map_err(|error| format!("the file is no good PEM: {error}"))?;
    if found.is_empty() {
        let rule = "the file has no certificate: it must have PEM blocks `BEGIN CERTIFICATE`";
        return Err(rule.to_owned());
    }
    Ok(found)
}

/// The key of a PEM file.
fn key(file: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(file).map_err(|error| match error {
        pem::Error::NoItemsFound => "the file has no private key: it must have a PEM block `BEGIN \
                                     PRIVATE KEY`, `BEGIN EC PRIVATE KEY` or `BEGIN RSA PRIVATE KEY`, \
                                     without a password"
            .to_owned(),
        error => format!("the file is no good PEM: {error}"),
    })
}

/// The bytes of a regular file: another, such as a pipe, could be long in coming.
fn read(path: &str) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("the file cannot be read: {error}");
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err("it is no regular file".to_owned());
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    let len = file.take(FILE_LEN_MAX + 1).read_to_end(&mut bytes);
    match len.map_err(failed)? as u64 {
        0..=FILE_LEN_MAX => Ok(bytes),
        _ => Err(format!("the file is longer than {FILE_LEN_MAX} bytes")),
    }
}
