//! Asks the daemon over its admin socket.

use std::io::ErrorKind;
use std::path::Path;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use understudy_replication::store::Progress;

use crate::admin_api::Line;
use crate::failure::{Failure, Kind};
use crate::progress::Display;

/// A line of an answer is at most this long.
const LINE_BYTES_MAX: usize = 16 << 20;

/// Asks for `path`; shows the progress, and returns the result.
pub(crate) async fn ask<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: &(impl Serialize + Sync),
) -> Result<T, Failure> {
    let no_daemon = |error: &dyn std::fmt::Display| {
        Failure::new(
            Kind::NoDaemon,
            format!("cannot reach the daemon at {}: {error}", socket.display()),
        )
        .hint("start it with `understudy serve` (or `systemctl start understudy`)")
    };
    let stream = UnixStream::connect(socket).await.map_err(|error| {
        let failure = no_daemon(&error);
        // It may well run.
        if error.kind() == ErrorKind::PermissionDenied {
            failure.hint("run this as the user that the daemon runs as (root, mostly)")
        } else {
            failure
        }
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| no_daemon(&error))?;
    let connection = tokio::spawn(connection);
    let body = serde_json::to_vec(body)?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(hyper::header::HOST, "understudy")
        .header(hyper::header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| no_daemon(&error))?;
    let status = response.status();
    let mut body = response.into_body();
    let display = Display::new();
    let mut buffer = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Failure::failed(format!(
                "the daemon went away in the middle of its answer: {error}"
            ))
            .hint("look at its log, start it again, and repeat the command")
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        buffer.extend_from_slice(&data);
        if !status.is_success() {
            continue;
        }
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            match serde_json::from_slice(&line)? {
                Line::News(news) => display.show(&news),
                Line::Result(value) => {
                    connection.abort();
                    return Ok(serde_json::from_value(value)?);
                }
                Line::Failure(failure) => return Err(failure),
            }
        }
        if buffer.len() > LINE_BYTES_MAX {
            return Err(Failure::failed("the daemon's answer is too long"));
        }
    }
    display.end("");
    let said = String::from_utf8_lossy(&buffer);
    Err(Failure::failed(format!(
        "the daemon did not finish its answer ({status}): {said}"
    ))
    .hint("look at its log, start it again, and repeat the command"))
}
