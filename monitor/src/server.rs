//! Serving the monitor port to anybody who can reach it, within bounds.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tower::ServiceExt;
use understudy_replication::store::Stop;

/// The bounds within which strangers are served.
#[derive(Clone, Copy)]
struct Bounds {
    /// Connections served at once; more wait in the kernel's queue.
    connections_max: usize,
    /// How long a connection may take to send the head of a request, or be idle between two.
    header_read_timeout: Duration,
}

const BOUNDS: Bounds = Bounds {
    connections_max: 512,
    header_read_timeout: Duration::from_secs(10),
};

/// How large the head of a request may be.
const HEADER_BYTES_MAX: usize = 16 * 1024;

/// How much of a body is read and thrown away, so that its sender gets to read the refusal.
const BODY_BYTES_MAX: usize = 16 * 1024;

/// How long that may take.
const BODY_READ_TIMEOUT: Duration = Duration::from_secs(2);

/// After this a connection is closed at the end of its request: whoever reads an answer slowly, or
/// never, gives its place back.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(300);

/// How long a running request has to end after the word to stop.
const GRACE: Duration = Duration::from_secs(3);

/// How long accepting pauses after a failure, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `router` on `listener` until told to stop, and then lets running requests end for a
/// bounded time. Cancelling it closes the listener and all connections at once.
///
/// # Errors
/// None at present: a failing connection is only logged, and a failing accept is tried again.
pub async fn serve(listener: TcpListener, router: Router, stop: Stop) -> io::Result<()> {
    serve_within(BOUNDS, listener, router, stop).await;
    Ok(())
}

async fn serve_within(bounds: Bounds, listener: TcpListener, router: Router, stop: Stop) {
    let places = Arc::new(Semaphore::new(bounds.connections_max));
    let mut connections = JoinSet::new();
    loop {
        let accept = async {
            let place = places.clone().acquire_owned().await;
            let place = place.expect("the semaphore is never closed");
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            accepted = accept => accepted,
            () = stop.wait() => break,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, address)) => {
                let connection = connection(bounds, stream, router.clone(), stop.clone());
                connections.spawn(async move {
                    let _place = place;
                    if let Err(error) = connection.await {
                        tracing::debug!(%address, %error, "monitor connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the monitor");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Serves one connection until it ends, is too old, or `stop` is given.
async fn connection(
    bounds: Bounds,
    stream: TcpStream,
    router: Router,
    stop: Stop,
) -> Result<(), hyper::Error> {
    let service = service_fn(move |request| answer(router.clone(), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.header_read_timeout)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        served = connection.as_mut() => return served,
        () = stop.wait() => {}
        () = tokio::time::sleep(CONNECTION_AGE_MAX) => {}
    }
    connection.as_mut().graceful_shutdown();
    // Whoever is not done by then is cut off.
    tokio::time::timeout(GRACE, connection)
        .await
        .unwrap_or(Ok(()))
}

async fn answer(router: Router, request: Request<Incoming>) -> Result<Response, Infallible> {
    let (head, body) = request.into_parts();
    if body.is_end_stream() {
        return router
            .oneshot(Request::from_parts(head, Body::empty()))
            .await;
    }
    let drained = Limited::new(body, BODY_BYTES_MAX).collect();
    let is_drained = matches!(
        tokio::time::timeout(BODY_READ_TIMEOUT, drained).await,
        Ok(Ok(_))
    );
    let refusal = "requests to the monitor have no body\n";
    let mut response = (StatusCode::PAYLOAD_TOO_LARGE, refusal).into_response();
    if !is_drained {
        // What is left of the body would be read as the next request.
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use understudy_replication::store::Stopper;

    use super::*;

    /// No condition of these tests takes longer, on however busy a machine.
    const DEADLINE: Duration = Duration::from_secs(20);

    struct Server {
        address: SocketAddr,
        stopper: Stopper,
        task: tokio::task::JoinHandle<()>,
    }

    async fn server(router: Router) -> Server {
        server_within(BOUNDS, router).await
    }

    async fn server_within(bounds: Bounds, router: Router) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stopper, stop) = Stopper::new();
        let task = tokio::spawn(serve_within(bounds, listener, router, stop));
        Server {
            address,
            stopper,
            task,
        }
    }

    fn hello() -> Router {
        Router::new().route("/", get(|| async { "hello" }).post(|| async { "posted" }))
    }

    /// Sends `request`, and returns everything until the server closes the connection.
    async fn exchange(server: &Server, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        // A connection that is cut while a body is on its way may end with a reset.
        let _read = tokio::time::timeout(DEADLINE, read)
            .await
            .expect("an end in time");
        String::from_utf8(answer).unwrap()
    }

    async fn stopped(server: Server) {
        server.stopper.stop();
        tokio::time::timeout(DEADLINE, server.task)
            .await
            .unwrap()
            .unwrap();
    }

    #[tokio::test]
    async fn a_request_without_a_body_is_answered() {
        let server = server(hello()).await;
        let request =
            b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let answer = exchange(&server, request).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nhello"), "{answer}");
        stopped(server).await;
    }

    #[tokio::test]
    async fn a_small_body_is_refused_and_the_connection_stays() {
        let server = server(hello()).await;
        let requests = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\
            GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let answer = exchange(&server, requests).await;
        assert!(
            answer.starts_with("HTTP/1.1 413 Payload Too Large\r\n"),
            "{answer}"
        );
        assert!(answer.ends_with("\r\n\r\nhello"), "{answer}");
        stopped(server).await;
    }

    #[tokio::test]
    async fn a_large_body_is_refused_and_the_connection_closed() {
        let server = server(hello()).await;
        let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 17000\r\n\r\n";
        let request = [head.as_bytes(), &[b'x'; 16_900]].concat();
        let answer = exchange(&server, &request).await;
        assert!(
            answer.starts_with("HTTP/1.1 413 Payload Too Large\r\n"),
            "{answer}"
        );
        assert!(answer.contains("connection: close\r\n"), "{answer}");
        stopped(server).await;
    }

    #[tokio::test]
    async fn a_running_request_ends_before_the_server_does() {
        let (begun_sender, mut begun) = tokio::sync::mpsc::channel(1);
        let release = Arc::new(Semaphore::new(0));
        let gate = release.clone();
        let slow = move || async move {
            begun_sender.send(()).await.unwrap();
            let _pass = gate.acquire().await.unwrap();
            "done"
        };
        let server = server(Router::new().route("/", get(slow))).await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .unwrap();
        begun.recv().await.unwrap();
        server.stopper.stop();
        // All tasks have had the word once nobody listens any more.
        while TcpStream::connect(server.address).await.is_ok() {}
        release.add_permits(1);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("connection: close\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\ndone"), "{answer}");
        stopped(server).await;
    }

    #[tokio::test]
    async fn idle_connections_do_not_keep_the_server_from_ending() {
        let server = server(hello()).await;
        let _idle = TcpStream::connect(server.address).await.unwrap();
        let answer = exchange(&server, b"GET / HTTP/1.0\r\n\r\n").await;
        assert!(answer.ends_with("hello"), "{answer}");
        stopped(server).await;
    }

    #[tokio::test]
    async fn silent_connections_give_their_places_back() {
        let bounds = Bounds {
            connections_max: 3,
            header_read_timeout: Duration::from_millis(200),
        };
        let server = server_within(bounds, hello()).await;
        let mut silent = Vec::new();
        for _ in 0..bounds.connections_max {
            silent.push(TcpStream::connect(server.address).await.unwrap());
        }
        let answer = exchange(&server, b"GET / HTTP/1.0\r\n\r\n").await;
        assert!(answer.ends_with("hello"), "{answer}");
        stopped(server).await;
    }
}
