//! A node's identity, and the TLS settings that follow from it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use understudy_config::NodeName;

use crate::trust::{Fingerprint, server_name};

/// Why a node's certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read as PEM.
    #[error("cannot read {what} from {}", path.display())]
    Read {
        /// What should have been in it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: rustls::pki_types::pem::Error,
    },
    /// The pieces do not fit together.
    #[error("the certificates in {} cannot be used", path.display())]
    Unusable {
        /// Their folder.
        path: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
    /// The authority is not one that can verify clients.
    #[error("the authority in {} cannot verify peers", path.display())]
    Verifier {
        /// Its folder.
        path: PathBuf,
        /// Why not.
        source: rustls::server::VerifierBuilderError,
    },
}

/// A node's certificate and key, and the authority that it trusts.
#[derive(Clone)]
pub struct Identity {
    pub(super) server: Arc<ServerConfig>,
    pub(super) client: Arc<ClientConfig>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keys are never printed.
        f.write_str("Identity")
    }
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

impl Identity {
    /// Loads `ca.crt`, `node.crt` and `node.key` from `pki`.
    ///
    /// # Errors
    /// When one is missing or malformed, or they do not fit together.
    pub fn load(pki: &Path) -> Result<Self, TlsError> {
        let read = |what, name: &str| {
            let path = pki.join(name);
            CertificateDer::from_pem_file(&path).map_err(|source| TlsError::Read {
                what,
                path,
                source,
            })
        };
        let authority = read("the cluster's authority", "ca.crt")?;
        let certificate = read("this node's certificate", "node.crt")?;
        let key_path = pki.join("node.key");
        let key = PrivateKeyDer::from_pem_file(&key_path).map_err(|source| TlsError::Read {
            what: "this node's key",
            path: key_path,
            source,
        })?;
        let unusable = |source| TlsError::Unusable {
            path: pki.to_owned(),
            source,
        };
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone()).map_err(unusable)?;
        let roots = Arc::new(roots);
        // The authority goes along so that a joining node, which knows only its fingerprint, can
        // verify the chain.
        let chain = vec![certificate, authority];
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider())
            // A joining node has no certificate yet. Every route but the one it needs refuses
            // callers without one.
            .allow_unauthenticated()
            .build()
            .map_err(|source| TlsError::Verifier {
                path: pki.to_owned(),
                source,
            })?;
        let server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(unusable)?;
        let client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(unusable)?;
        Ok(Self {
            server: Arc::new(server),
            client: Arc::new(client),
        })
    }
}

/// Accepts a server whose chain ends in the authority with the given fingerprint, and that is the
/// node expected: what a joining node knows from its token, and nothing else.
#[derive(Debug)]
pub(super) struct PinnedAuthority {
    fingerprint: Fingerprint,
}

impl PinnedAuthority {
    pub(super) fn client_config(fingerprint: Fingerprint) -> Result<ClientConfig, rustls::Error> {
        Ok(ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Self { fingerprint }))
            .with_no_client_auth())
    }
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates
            .iter()
            .find(|certificate| Fingerprint::of(certificate) == self.fingerprint)
            .ok_or_else(|| {
                rustls::Error::General(
                    "the server does not belong to the cluster that issued the token".to_owned(),
                )
            })?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &provider().signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Returns the name that `node`'s certificate carries.
pub(super) fn tls_name(node: &NodeName) -> io::Result<ServerName<'static>> {
    ServerName::try_from(server_name(node)).map_err(io::Error::other)
}
