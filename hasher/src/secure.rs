//! Who may be on the other end of the link: TLS 1.3 with raw public keys (RFC 7250) on both sides.
//!
//! There are two ends and both are known beforehand, so there are no certificates: each side
//! shows its Ed25519 key, and the other compares it with the one that the configuration lists.
//! Sessions are not resumed, so that a key that was replaced ends with its connections.

use std::io;
use std::sync::Arc;

use plover_keys::{Identity, PublicIdentity};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer,
    UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig,
    SignatureScheme,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// The name that TLS wants for a server; nobody looks it up or sends it.
const SERVER_NAME: &str = "plover-hasher";

/// What the peer said in TLS that ended the connection, or what we found.
#[derive(Debug, thiserror::Error)]
pub enum SecureError {
    /// It is somebody, but not the peer.
    #[error(
        "who is there has another key than group.nodes lists for the peer: is its public_key the \
         one that `plover keygen --public` prints on that host?"
    )]
    WrongKey,
    /// The peer does not know our key.
    #[error(
        "the peer refuses our key: is the public_key that its configuration lists for this node \
         the one that `plover keygen --public` prints here?"
    )]
    KeyRefused(#[source] rustls::Error),
    /// It speaks something else.
    #[error("who is there does not speak TLS: is replication.security off on one host only?")]
    NoTls(#[source] rustls::Error),
    /// Anything else.
    #[error("TLS failed")]
    Other(#[source] rustls::Error),
}

/// This node's key and the peer's, ready for connections of both directions.
#[derive(Clone)]
pub struct LinkKeys {
    connector: TlsConnector,
    acceptor: TlsAcceptor,
}

impl LinkKeys {
    /// Makes them ready.
    ///
    /// # Errors
    /// The TLS library refuses the keys.
    pub fn new(own: &Identity, peer: &PublicIdentity) -> Result<Self, SecureError> {
        let provider = Arc::new(provider());
        let shown = Arc::new(shown_key(own, &provider)?);
        let expected = Arc::new(PeerKey {
            spki: peer.ed25519_spki(),
            provider: Arc::clone(&provider),
        });
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(SecureError::Other)?
            .dangerous()
            .with_custom_certificate_verifier(expected.clone())
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
                Arc::clone(&shown),
            )));
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(SecureError::Other)?
            .with_client_cert_verifier(expected)
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(shown)));
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Self {
            connector: TlsConnector::from(Arc::new(client)),
            acceptor: TlsAcceptor::from(Arc::new(server)),
        })
    }

    /// The side that connected.
    ///
    /// # Errors
    /// If the connection breaks or who is there is not the peer; see [`cause_of`].
    pub async fn connect(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
        Ok(self.connector.connect(name, stream).await?.into())
    }

    /// The side that was connected to.
    ///
    /// # Errors
    /// As for [`Self::connect`].
    pub async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        Ok(self.acceptor.accept(stream).await?.into())
    }
}

impl std::fmt::Debug for LinkKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LinkKeys")
    }
}

/// What ended a connection, if it was TLS.
#[must_use]
pub fn cause_of(error: &io::Error) -> Option<SecureError> {
    use rustls::AlertDescription as Alert;
    use rustls::Error::{AlertReceived, InvalidCertificate, InvalidMessage};
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?.clone();
    Some(match &error {
        InvalidCertificate(CertificateError::ApplicationVerificationFailure) => {
            SecureError::WrongKey
        }
        AlertReceived(
            Alert::AccessDenied
            | Alert::BadCertificate
            | Alert::CertificateUnknown
            | Alert::UnsupportedCertificate,
        ) => SecureError::KeyRefused(error),
        InvalidMessage(_) => SecureError::NoTls(error),
        _ => SecureError::Other(error),
    })
}

/// One cipher, the one that the replication link has, too.
fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![ring::cipher_suite::TLS13_AES_256_GCM_SHA384],
        ..ring::default_provider()
    }
}

fn shown_key(own: &Identity, provider: &CryptoProvider) -> Result<CertifiedKey, SecureError> {
    let secret = PrivatePkcs8KeyDer::from(own.ed25519_pkcs8().to_vec());
    let key = provider
        .key_provider
        .load_private_key(PrivateKeyDer::Pkcs8(secret))
        .map_err(SecureError::Other)?;
    let spki = own.public().ed25519_spki().to_vec();
    Ok(CertifiedKey::new(vec![CertificateDer::from(spki)], key))
}

/// The only key that is let in.
#[derive(Debug)]
struct PeerKey {
    spki: [u8; 44],
    provider: Arc<CryptoProvider>,
}

impl PeerKey {
    fn check(&self, shown: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        if shown.as_ref() == self.spki {
            return Ok(());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn check_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let spki = SubjectPublicKeyInfoDer::from(shown.as_ref());
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &spki, signed, algorithms)
    }

    fn no_tls12() -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
    }
}

impl ServerCertVerifier for PeerKey {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(shown).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _shown: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, shown, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for PeerKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(shown).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _shown: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, shown, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
