//! Requests to the port of the peers, with any certificate.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::Answer;

/// Who calls: the folder of the certificates, or nobody.
pub(crate) enum Caller<'a> {
    Node(&'a Path),
    Nobody,
}

/// Sends one request to the peer port of `node` at `ip`; `trusted` is the folder of the authority that
/// the caller trusts.
pub(crate) fn call(
    (node, ip, port): (&str, &str, u16),
    trusted: &Path,
    caller: &Caller<'_>,
    request: &str,
) -> Result<Answer, String> {
    let certificates = |path: &Path| -> Vec<CertificateDer<'static>> {
        let text = fs::read(path).unwrap();
        CertificateDer::pem_slice_iter(&text)
            .map(Result::unwrap)
            .collect()
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&trusted.join("ca.crt")) {
        roots.add(certificate).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let config = match caller {
        Caller::Node(pki) => {
            let key =
                PrivateKeyDer::from_pem_slice(&fs::read(pki.join("node.key")).unwrap()).unwrap();
            config
                .with_client_auth_cert(certificates(&pki.join("node.crt")), key)
                .unwrap()
        }
        Caller::Nobody => config.with_no_client_auth(),
    };
    let name = ServerName::try_from(format!("{node}.understudy")).unwrap();
    let send = || {
        let stream = TcpStream::connect((ip, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let connection =
            ClientConnection::new(Arc::new(config), name).map_err(std::io::Error::other)?;
        let mut stream = StreamOwned::new(connection, stream);
        stream.write_all(request.as_bytes())?;
        let mut text = Vec::new();
        // Without a farewell of TLS the end is an error, and what came before it counts.
        if let Err(error) = stream.read_to_end(&mut text)
            && text.is_empty()
        {
            return Err(error);
        }
        std::io::Result::Ok(String::from_utf8_lossy(&text).into_owned())
    };
    Answer::parse(&send().map_err(|error| error.to_string())?)
}
