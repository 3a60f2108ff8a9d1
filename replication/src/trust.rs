//! The cluster's own certificate authority, and the tokens by which nodes join.

use std::fmt;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use serde::{Deserialize, Serialize};
use understudy_config::NodeName;

use crate::durable;

/// The certificate of the authority, in the folder of certificates.
pub const CA_CERTIFICATE: &str = "ca.crt";
/// The key of the authority.
pub const CA_KEY: &str = "ca.key";
/// This node's certificate.
pub const NODE_CERTIFICATE: &str = "node.crt";
/// This node's key.
pub const NODE_KEY: &str = "node.key";

/// Why certificates could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file could not be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The authority, a key or a request is malformed.
    #[error("cannot make a certificate for {subject}")]
    Certificate {
        /// Whom it was for.
        subject: String,
        /// Why not.
        source: rcgen::Error,
    },
    /// A cluster's authority is there already.
    #[error("{} belongs to a cluster already", path.display())]
    Exists {
        /// The folder of certificates.
        path: PathBuf,
    },
}

/// Returns the DNS name in `node`'s certificate.
///
/// A suffix makes every node name, such as `1`, a valid host name.
pub fn server_name(node: &NodeName) -> String {
    format!("{node}.understudy")
}

/// The BLAKE3 hash of an authority's certificate, by which a joining node knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Returns the fingerprint of a certificate in DER.
    pub fn of(certificate: &[u8]) -> Self {
        Self(*blake3::hash(certificate).as_bytes())
    }
}

/// What `understudy invite` prints: good for one node, once, until it expires.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The node that issued it and that redeems it.
    pub issuer: NodeName,
    /// The node that is invited.
    pub node: NodeName,
    /// The cluster's authority.
    pub fingerprint: Fingerprint,
    /// What only the invited knows.
    pub secret: [u8; 32],
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The secret is never logged.
        write!(f, "Token(for {} of {})", self.node, self.issuer)
    }
}

impl fmt::Display for Token {
    /// Writes `us1.ISSUER.NODE.BASE64`. The caller decides where it may be shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(64);
        bytes.extend_from_slice(&self.fingerprint.0);
        bytes.extend_from_slice(&self.secret);
        let code = URL_SAFE_NO_PAD.encode(bytes);
        write!(f, "us1.{}.{}.{code}", self.issuer, self.node)
    }
}

/// A text is not a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is not a token of `understudy invite` (expected us1.NODE.NODE.CODE, copied whole)")]
pub struct ParseTokenError;

impl FromStr for Token {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.trim().splitn(4, '.');
        let mut part = || parts.next().ok_or(ParseTokenError);
        let (version, issuer, node, code) = (part()?, part()?, part()?, part()?);
        if version != "us1" {
            return Err(ParseTokenError);
        }
        let bytes = URL_SAFE_NO_PAD.decode(code).map_err(|_| ParseTokenError)?;
        let (fingerprint, secret) = bytes.split_at_checked(32).ok_or(ParseTokenError)?;
        Ok(Self {
            issuer: issuer.parse().map_err(|_| ParseTokenError)?,
            node: node.parse().map_err(|_| ParseTokenError)?,
            fingerprint: Fingerprint(fingerprint.try_into().map_err(|_| ParseTokenError)?),
            secret: secret.try_into().map_err(|_| ParseTokenError)?,
        })
    }
}

/// What a joining node asks, proved by the token's secret.
#[derive(Clone, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The name that the node was invited as.
    pub node: NodeName,
    /// Where its peers will reach it.
    pub address: std::net::SocketAddr,
    /// The secret of the token, in base64.
    pub secret: String,
    /// A certificate signing request (PEM); only its public key is used.
    pub request: String,
}

/// What a joining node gets.
#[derive(Clone, Serialize, Deserialize)]
pub struct JoinAnswer {
    /// The authority's certificate (PEM).
    pub authority: String,
    /// The authority's key (PEM): each node of a pair must be able to invite when it is primary.
    pub authority_key: String,
    /// The node's certificate (PEM).
    pub certificate: String,
    /// The cluster's configuration.
    pub configuration: String,
    /// The epoch that it joins.
    pub epoch: crate::epoch::Epoch,
}

/// The cluster's authority, with its key.
pub struct Authority {
    certificate: String,
    key: String,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority")
    }
}

/// A node's certificate and key, both PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// The key; empty when the node keeps it to itself.
    pub key: String,
}

impl Authority {
    /// Makes the authority of a new cluster.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn create(cluster: &str) -> Result<Self, TrustError> {
        let failed = |source| TrustError::Certificate {
            subject: format!("the authority of cluster {cluster}"),
            source,
        };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("understudy {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params);
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok(Self {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Loads the authority from the folder of certificates.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn load(pki: &Path) -> Result<Self, TrustError> {
        Ok(Self {
            certificate: read(&pki.join(CA_CERTIFICATE))?,
            key: read(&pki.join(CA_KEY))?,
        })
    }

    /// Returns the authority's certificate (PEM).
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Returns the authority's key (PEM).
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Makes a key and a certificate for `node`.
    ///
    /// # Errors
    /// When the authority cannot sign.
    pub fn issue(&self, node: &NodeName, ip: IpAddr) -> Result<Issued, TrustError> {
        let failed = |source| failed_for(node, source);
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params_of(node, ip)
            .and_then(|params| params.signed_by(&key, &self.issuer()?))
            .map_err(failed)?;
        Ok(Issued {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Signs the public key of `request` (PEM) for `node`. What else the request says is ignored: it
    /// is the token that tells who the node is.
    ///
    /// # Errors
    /// When the request is malformed or the authority cannot sign.
    pub fn sign(&self, request: &str, node: &NodeName, ip: IpAddr) -> Result<String, TrustError> {
        let failed = |source| failed_for(node, source);
        let request = CertificateSigningRequestParams::from_pem(request).map_err(failed)?;
        let certificate = params_of(node, ip)
            .and_then(|params| params.signed_by(&request.public_key, &self.issuer()?))
            .map_err(failed)?;
        Ok(certificate.pem())
    }

    /// Returns the fingerprint of the authority's certificate.
    ///
    /// # Errors
    /// When the certificate is malformed.
    pub fn fingerprint(&self) -> Result<Fingerprint, TrustError> {
        use rustls::pki_types::CertificateDer;
        use rustls::pki_types::pem::PemObject;
        let der = CertificateDer::from_pem_slice(self.certificate.as_bytes()).map_err(|_| {
            TrustError::Certificate {
                subject: "the authority".to_owned(),
                source: rcgen::Error::CouldNotParseCertificate,
            }
        })?;
        Ok(Fingerprint::of(&der))
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, rcgen::Error> {
        Issuer::from_ca_cert_pem(&self.certificate, KeyPair::from_pem(&self.key)?)
    }
}

fn failed_for(node: &NodeName, source: rcgen::Error) -> TrustError {
    TrustError::Certificate {
        subject: format!("node {node}"),
        source,
    }
}

fn params_of(node: &NodeName, ip: IpAddr) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(vec![server_name(node)])?;
    params.subject_alt_names.push(SanType::IpAddress(ip));
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, node.as_str());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params);
    Ok(params)
}

/// Certificates hold from 2020 on, because the clocks of two machines may differ by more than the
/// age of a fresh certificate, and until 2100: replication that stops on a date is an outage that
/// nobody ordered. Trust ends by taking the node out of the configuration.
fn set_validity(params: &mut CertificateParams) {
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2100, 1, 1);
}

/// Makes a key and a signing request (both PEM), for a node that joins. The key stays on the node.
///
/// # Errors
/// When no key can be made.
pub fn signing_request(node: &NodeName) -> Result<(String, String), TrustError> {
    let failed = |source| failed_for(node, source);
    let key = KeyPair::generate().map_err(failed)?;
    let request = CertificateParams::new(vec![server_name(node)])
        .and_then(|params| params.serialize_request(&key))
        .and_then(|request| request.pem())
        .map_err(failed)?;
    Ok((key.serialize_pem(), request))
}

/// Writes a node's certificates. The key of the authority is written last: [`Authority::load`]
/// succeeding means that all are there.
///
/// # Errors
/// When a file cannot be written.
pub fn store(
    pki: &Path,
    authority: &str,
    authority_key: &str,
    node: &Issued,
) -> Result<(), TrustError> {
    let file = |path: &Path, source| TrustError::File {
        action: "write",
        path: path.to_owned(),
        source,
    };
    durable::create_directory(pki, 0o755).map_err(|source| file(pki, source))?;
    for (name, content, mode) in [
        (CA_CERTIFICATE, authority, 0o644),
        (NODE_CERTIFICATE, &node.certificate, 0o644),
        (NODE_KEY, &node.key, 0o600),
        (CA_KEY, authority_key, 0o600),
    ] {
        let path = pki.join(name);
        durable::write(&path, content.as_bytes(), mode).map_err(|source| file(&path, source))?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, TrustError> {
    fs::read_to_string(path).map_err(|source| TrustError::File {
        action: "read",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_being_printed() {
        let token = Token {
            issuer: "a".parse().unwrap(),
            node: "b".parse().unwrap(),
            fingerprint: Fingerprint([7; 32]),
            secret: [9; 32],
        };
        assert_eq!(token.to_string().parse::<Token>().unwrap(), token);
        assert!(
            !format!("{token:?}").contains("CQkJ"),
            "the secret is not logged"
        );
    }

    #[test]
    fn what_is_not_a_token_is_refused() {
        for text in [
            "",
            "us1",
            "us1.a.b",
            "us1.a.b.",
            "us1.a.b.AAAA",
            "us2.a.b.AAAA",
            "us1.A.b.AAAA",
        ] {
            assert_eq!(text.parse::<Token>(), Err(ParseTokenError), "{text:?}");
        }
    }

    #[test]
    fn a_signed_request_names_the_invited_node_and_not_whom_it_asked_for() {
        let authority = Authority::create("catalog").unwrap();
        let (_, request) = signing_request(&"mallory".parse().unwrap()).unwrap();
        let ip = "10.0.0.2".parse().unwrap();
        let certificate = authority.sign(&request, &"b".parse().unwrap(), ip).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        assert_eq!(certificate.subject().to_string(), "CN=b");
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 2);
        assert!(format!("{:?}", names.value).contains("b.understudy"));
    }

    #[test]
    fn keys_are_readable_by_their_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let pki = folder.path().join("pki");
        let authority = Authority::create("catalog").unwrap();
        let node = authority
            .issue(&"a".parse().unwrap(), "10.0.0.1".parse().unwrap())
            .unwrap();
        store(&pki, authority.certificate(), authority.key(), &node).unwrap();
        for name in [NODE_KEY, CA_KEY] {
            let mode = fs::metadata(pki.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let loaded = Authority::load(&pki).unwrap();
        assert_eq!(
            loaded.fingerprint().unwrap(),
            authority.fingerprint().unwrap()
        );
    }
}
