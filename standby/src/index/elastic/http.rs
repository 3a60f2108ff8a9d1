//! Asking Elasticsearch over HTTP.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use understudy_config::Elasticsearch;

use super::error::ElasticError;

/// How long one answer may take.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);

/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// How often a busy server is asked again, and the first pause before that.
pub(super) const TRIES_MAX: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Where the authorities are that a system trusts: Debian, Red Hat.
const SYSTEM_AUTHORITIES: [&str; 2] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
];

/// An HTTP client of one server.
pub(super) struct Http {
    host: String,
    place: String,
    port: u16,
    authorization: Option<HeaderValue>,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

/// What was answered.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Value,
}

impl Http {
    pub(super) fn open(place: &Elasticsearch) -> Result<Self, ElasticError> {
        let authorization = match &place.login {
            None => None,
            Some((user, file)) => {
                let password = read(file)?;
                let password = String::from_utf8_lossy(&password);
                let line = password.lines().next().unwrap_or_default();
                let login = STANDARD.encode(format!("{user}:{line}"));
                let mut value = HeaderValue::from_str(&format!("Basic {login}"))
                    .map_err(|_| ElasticError::Answer { what: "log in" })?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let tls = match place.is_tls {
            false => None,
            true => {
                let name = ServerName::try_from(place.host.clone()).map_err(|_| {
                    ElasticError::HostName {
                        host: place.host.clone(),
                    }
                })?;
                Some((Arc::new(trust(place.ca_file.as_deref())?), name))
            }
        };
        let shown = if place.host.contains(':') {
            format!("[{}]:{}", place.host, place.port)
        } else {
            format!("{}:{}", place.host, place.port)
        };
        Ok(Self {
            host: place.host.clone(),
            place: shown,
            port: place.port,
            authorization,
            tls,
        })
    }

    /// Asks once, and again while the server has too much to do.
    pub(super) async fn ask(
        &self,
        what: &'static str,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Answer, ElasticError> {
        for tried in 0..TRIES_MAX {
            let asking = self.once(what, method.clone(), path, body.clone());
            let answer = tokio::time::timeout(ANSWER_PATIENCE, asking)
                .await
                .map_err(|_| ElasticError::Late {
                    limit: ANSWER_PATIENCE,
                })??;
            if answer.status != 429 {
                return Ok(answer);
            }
            pause(tried).await;
        }
        Err(ElasticError::Busy {
            what,
            tries: TRIES_MAX,
        })
    }

    async fn once(
        &self,
        what: &'static str,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Answer, ElasticError> {
        let failed = |source| ElasticError::Connect {
            place: self.place.clone(),
            source,
        };
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.place)
            // Elasticsearch takes one JSON document to be a line of them, too, only where it is asked for.
            .header(
                CONTENT_TYPE,
                if path.contains("/_bulk?") {
                    "application/x-ndjson"
                } else {
                    "application/json"
                },
            );
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request
            .body(Full::new(body))
            .map_err(|_| ElasticError::Answer { what })?;
        match &self.tls {
            None => send(what, stream, request).await,
            Some((config, name)) => {
                let connector = tokio_rustls::TlsConnector::from(config.clone());
                let stream = connector
                    .connect(name.clone(), stream)
                    .await
                    .map_err(failed)?;
                send(what, stream, request).await
            }
        }
    }
}

async fn send(
    what: &'static str,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Answer, ElasticError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let asking = async move {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
        let body = body
            .collect()
            .await
            .map_err(|_| ElasticError::Answer { what })?
            .to_bytes();
        let body = match body.is_empty() {
            true => Value::Null,
            // A proxy's page about an error is no JSON, and its status says enough.
            false => serde_json::from_slice(&body).unwrap_or(Value::Null),
        };
        Ok(Answer { status, body })
    };
    // The connection lives as long as the question.
    let mut asking = std::pin::pin!(asking);
    tokio::select! {
        answer = &mut asking => answer,
        ended = connection => {
            ended?;
            asking.await
        }
    }
}

/// Waits before another try.
pub(super) async fn pause(tried: u32) {
    tokio::time::sleep(FIRST_PAUSE * (1 << tried.min(6))).await;
}

fn read(path: &Path) -> Result<Vec<u8>, ElasticError> {
    std::fs::read(path).map_err(|source| ElasticError::File {
        path: path.to_owned(),
        source,
    })
}

/// Returns whom to trust.
fn trust(file: Option<&Path>) -> Result<ClientConfig, ElasticError> {
    let systems = SYSTEM_AUTHORITIES.map(Path::new);
    let path = match file {
        Some(file) => file,
        None => {
            let there = systems.into_iter().find(|path| path.exists());
            there.unwrap_or(Path::new(SYSTEM_AUTHORITIES[0]))
        }
    };
    let mut roots = RootCertStore::empty();
    let text = read(path)?;
    let certificates = CertificateDer::pem_slice_iter(&text).filter_map(Result::ok);
    let (added, _) = roots.add_parsable_certificates(certificates);
    if added == 0 {
        return Err(ElasticError::NoAuthorities {
            path: path.to_owned(),
        });
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| ElasticError::NoAuthorities {
            path: path.to_owned(),
        })?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
