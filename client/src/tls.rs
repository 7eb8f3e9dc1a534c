//! TLS 1.3: the options of an application ([`TlsOptions`]), and the encrypted stream under a connection.
//!
//! A client with these options never falls back to plain connections: it does not use a node that speaks
//! no TLS. The certificate of a node must name the host that the client connects to, which is the one in
//! an address that the client was given, or in one that a node advertises.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore,
    SignatureScheme,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::Reason;

/// What a client trusts, and the certificate that it shows, when its connections are encrypted. All files
/// and texts are PEM; files are read when the client is made.
///
/// ```
/// use rangedb_client::{ClientOptions, TlsOptions};
///
/// let tls = TlsOptions::ca_file("ca.pem").certificate_files("client.pem", "client.key");
/// let options = ClientOptions::new(["db1.example.com:7400"]).tls(tls);
/// ```
#[derive(Clone, Debug)]
pub struct TlsOptions {
    trust: Trust,
    identity: Option<(Pem, Pem)>,
    name: Option<String>,
}

/// Which certificates of nodes are trusted.
#[derive(Clone, Debug)]
enum Trust {
    /// Those that one of these has signed.
    SignedBy(Pem),
    /// This one.
    Exactly(Pem),
}

#[derive(Clone)]
enum Pem {
    File(PathBuf),
    Bytes(Vec<u8>),
}

/// Without bytes, which may be a key.
impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pem::File(path) => path.fmt(f),
            Pem::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
        }
    }
}

impl TlsOptions {
    fn trusting(trust: Trust) -> TlsOptions {
        TlsOptions {
            trust,
            identity: None,
            name: None,
        }
    }

    /// Trusts nodes whose certificate was signed by one in this file.
    pub fn ca_file(file: impl AsRef<Path>) -> TlsOptions {
        TlsOptions::trusting(Trust::SignedBy(Pem::File(file.as_ref().to_owned())))
    }

    /// Trusts nodes whose certificate was signed by one of these.
    pub fn ca_pem(pem: impl Into<Vec<u8>>) -> TlsOptions {
        TlsOptions::trusting(Trust::SignedBy(Pem::Bytes(pem.into())))
    }

    /// Trusts the nodes that show the first certificate of this PEM, and no others. Who has signed the
    /// certificate, which host it names and when it expires are not checked.
    pub fn pinned_pem(pem: impl Into<Vec<u8>>) -> TlsOptions {
        TlsOptions::trusting(Trust::Exactly(Pem::Bytes(pem.into())))
    }

    /// Shows the certificate in this file to nodes that want one; the other file has its key.
    #[must_use]
    pub fn certificate_files(
        self,
        certificate: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> TlsOptions {
        let file = |path: &Path| Pem::File(path.to_owned());
        TlsOptions {
            identity: Some((file(certificate.as_ref()), file(key.as_ref()))),
            ..self
        }
    }

    /// Shows this certificate to nodes that want one.
    #[must_use]
    pub fn certificate_pem(
        self,
        certificate: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> TlsOptions {
        TlsOptions {
            identity: Some((Pem::Bytes(certificate.into()), Pem::Bytes(key.into()))),
            ..self
        }
    }

    /// The host that the certificates of all nodes name, instead of those in their addresses.
    #[must_use]
    pub fn server_name(self, name: impl Into<String>) -> TlsOptions {
        TlsOptions {
            name: Some(name.into()),
            ..self
        }
    }
}

/// The options, read and checked.
#[derive(Clone)]
pub struct Tls {
    connector: TlsConnector,
    name: Option<ServerName<'static>>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// One cannot be read, or is not what it should be.
    pub fn new(options: &TlsOptions) -> Result<Tls, Reason> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| Reason::from(error.to_string()))?;
        let builder = match &options.trust {
            Trust::SignedBy(ca) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates("the CA", ca)? {
                    let added = roots.add(certificate);
                    added.map_err(|error| ca.bad("the CA", &error))?;
                }
                builder.with_root_certificates(roots)
            }
            Trust::Exactly(pem) => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Pinned {
                    certificate: certificates("the pinned certificate", pem)?.swap_remove(0),
                    provider,
                })),
        };
        let mut config = match &options.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates("the client's certificate", certificate)?;
                let what = "the client's key";
                let key_der = PrivateKeyDer::from_pem_slice(&key.bytes(what)?);
                let key_der = key_der.map_err(|error| match error {
                    pem::Error::NoItemsFound => {
                        key.bad(what, &"there is no PEM block of a private key")
                    }
                    error => key.bad(what, &error),
                })?;
                let config = builder.with_client_auth_cert(chain, key_der);
                config.map_err(|error| match error {
                    rustls::Error::InconsistentKeys(_) => {
                        key.bad(what, &"it is not the key of the client's certificate")
                    }
                    error => certificate.bad("the client's certificate", &error),
                })?
            }
        };
        // Nodes give no tickets.
        config.resumption = Resumption::disabled();
        let name = options.name.as_ref().map(|name| server_name(name));
        Ok(Tls {
            connector: TlsConnector::from(Arc::new(config)),
            name: name.transpose()?,
        })
    }

    /// Makes TLS of a connection to an address of this `host`.
    ///
    /// # Errors
    /// The node is not the one that is meant, or does not accept this client.
    pub async fn connect(&self, stream: TcpStream, host: &str) -> Result<Stream, Reason> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => server_name(host)?,
        };
        let (reader, writer) = stream.into_split();
        let writer = Arc::new(writer);
        let socket = Socket {
            reader,
            writer: writer.clone(),
        };
        let connected = self.connector.connect(name, socket).await;
        let encrypted = connected.map_err(worded)?;
        Ok(Stream {
            writer,
            reader: Reader::Tls(Box::new(encrypted)),
        })
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, Reason> {
    let bare = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'));
    let name = bare.unwrap_or(name);
    let parsed = ServerName::try_from(name.to_owned());
    parsed.map_err(|_| format!("{name:?} is no host that a certificate could name").into())
}

impl Pem {
    fn bytes(&self, what: &str) -> Result<Vec<u8>, Reason> {
        match self {
            Pem::Bytes(bytes) => Ok(bytes.clone()),
            Pem::File(path) => std::fs::read(path).map_err(|error| {
                let text = format!("{what} cannot be read from {}: {error}", path.display());
                Reason::from(error).worded(text)
            }),
        }
    }

    fn bad(&self, what: &str, error: &dyn fmt::Display) -> Reason {
        let file = match self {
            Pem::Bytes(_) => String::new(),
            Pem::File(path) => format!(" in {}", path.display()),
        };
        format!("{what}{file} cannot be used: {error}").into()
    }
}

/// The certificates of a PEM; at least one.
fn certificates(what: &str, pem: &Pem) -> Result<Vec<CertificateDer<'static>>, Reason> {
    let bytes = pem.bytes(what)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|error| pem.bad(what, &error))?;
    if found.is_empty() {
        return Err(pem.bad(what, &"there is no PEM block of a certificate"));
    }
    Ok(found)
}

/// Trusts one certificate.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // That the node has the key, too, is proved by its signature.
        match *end_entity == self.certificate {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// The words for an error of an encrypted connection.
pub fn worded(error: io::Error) -> Reason {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    let text = match inner {
        Some(rustls::Error::InvalidCertificate(why)) => of_certificate(why),
        Some(rustls::Error::AlertReceived(alert)) => of_alert(*alert),
        Some(error) => format!("TLS failed: {error}"),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the node closed the connection".to_owned()
        }
        None => return error.into(),
    };
    Reason::from(error).worded(text)
}

/// Why the node's certificate is not trusted.
fn of_certificate(why: &CertificateError) -> String {
    match why {
        CertificateError::UnknownIssuer => {
            "the node's certificate was not signed by the CA that the client was given".to_owned()
        }
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => format!(
            "the node's certificate does not name {}, but {}; if that is the node all the same, give \
             this name as --tls-name or TlsOptions::server_name",
            expected.to_str(),
            presented.join(", ")
        ),
        CertificateError::NotValidForName => {
            "the node's certificate does not name the host of its address".to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("the node's certificate has expired, or this machine's clock is wrong: {why}")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!(
                "the node's certificate is not valid yet, or this machine's clock is wrong: {why}"
            )
        }
        CertificateError::ApplicationVerificationFailure => {
            "the node shows another certificate than the pinned one".to_owned()
        }
        why => format!("the node's certificate is not trusted: {why}"),
    }
}

/// Why the node refuses this client.
fn of_alert(alert: AlertDescription) -> String {
    let refused = |why| format!("the node does not accept the client's certificate: {why}");
    match alert {
        AlertDescription::CertificateRequired => {
            "the node wants a certificate of the client: give --tls-cert and --tls-key, or \
             TlsOptions::certificate_files"
                .to_owned()
        }
        AlertDescription::UnknownCA => refused("it was not signed by the node's --tls-ca"),
        AlertDescription::CertificateExpired => refused("it has expired"),
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::DecryptError => refused("it is not valid"),
        AlertDescription::ProtocolVersion => {
            "the node speaks no version of TLS that the client speaks: TLS 1.3 or 1.2".to_owned()
        }
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
            "the node and the client have no cipher of TLS in common".to_owned()
        }
        AlertDescription::UnrecognisedName => {
            "the node has no certificate for this name: give --tls-name or TlsOptions::server_name"
                .to_owned()
        }
        AlertDescription::InternalError => {
            "the node failed to encrypt the connection: its log says why".to_owned()
        }
        alert => format!(
            "the node ended TLS with alert {} of RFC 8446",
            u8::from(alert)
        ),
    }
}

/// A connection's socket, encrypted or not.
pub struct Stream {
    /// Writes plain bytes, and ends the socket.
    pub writer: Arc<OwnedWriteHalf>,
    /// The other half.
    pub reader: Reader,
}

/// Where received bytes come from.
pub enum Reader {
    /// From the socket.
    Plain(OwnedReadHalf),
    /// From TLS, which also encrypts what is sent.
    Tls(Box<TlsStream<Socket>>),
}

impl Stream {
    /// Without TLS.
    pub fn plain(stream: TcpStream) -> Stream {
        let (reader, writer) = stream.into_split();
        Stream {
            writer: Arc::new(writer),
            reader: Reader::Plain(reader),
        }
    }
}

/// The socket under TLS. The connection has the writing half, too, to end it.
pub struct Socket {
    reader: OwnedReadHalf,
    writer: Arc<OwnedWriteHalf>,
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, to)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let socket: &TcpStream = (*self.writer).as_ref();
        loop {
            ready!(socket.poll_write_ready(cx))?;
            match socket.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection shuts the socket down.
        Poll::Ready(Ok(()))
    }
}
