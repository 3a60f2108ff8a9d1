//! What is looked at over the network.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use understudy_config::CheckKind;
use understudy_replication::status::CheckState::{Failed, Ok as Well};

use crate::watched::{Watched, check, config};

#[tokio::test]
async fn a_port_that_takes_connections_is_well_and_one_that_does_not_is_not() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let watched = Watched::new(CheckKind::Tcp {
        host: "127.0.0.1".to_owned(),
        port: address.port(),
    });
    watched.is(Well).await;
    drop(listener);
    let told = watched.is(Failed).await;
    assert!(told.contains("Connection refused"), "{told}");
    let _listener = TcpListener::bind(address).unwrap();
    watched.is(Well).await;
    let told: Vec<_> = watched
        .events()
        .into_iter()
        .map(|it| (it.kind, it.severity))
        .collect();
    let error = understudy_replication::event::Severity::Error;
    let expected = ["check_failed", "check_recovered"].map(|kind| (kind.to_owned(), error));
    assert_eq!(told, expected);
}

/// Serves this answer to everybody, until the test ends.
fn serve(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/health?all", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 1000];
            let length = stream.read(&mut request).unwrap();
            if request[..length].starts_with(b"GET /health?all HTTP/1.1\r\n") {
                // Who asks may have gone away.
                stream.write_all(answer.as_bytes()).unwrap_or_default();
            }
        }
    });
    url
}

#[tokio::test]
async fn a_page_has_the_status_and_the_text_that_are_expected() {
    let url = serve("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nready\r\n");
    let page = |status, contains: &str| {
        Watched::new(CheckKind::Http {
            url: url.clone(),
            status,
            contains: contains.to_owned(),
        })
    };
    page(None, "ready").is(Well).await;
    page(Some(200), "").is(Well).await;
    assert!(
        page(Some(204), "")
            .is(Failed)
            .await
            .ends_with("is answered with status 200")
    );
    assert!(
        page(None, "steady")
            .is(Failed)
            .await
            .ends_with("does not contain `steady`")
    );
    let watched = Watched::new(CheckKind::Http {
        url: serve("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"),
        status: None,
        contains: String::new(),
    });
    assert!(
        watched
            .is(Failed)
            .await
            .ends_with("is answered with status 503")
    );
}

#[tokio::test]
async fn who_takes_connections_and_says_nothing_does_not_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut silent = check(CheckKind::Http {
        url: format!("http://{}/", listener.local_addr().unwrap()),
        status: None,
        contains: String::new(),
    });
    silent.timeout = Duration::from_millis(50);
    let watched = Watched::of(&config(vec![silent]), None);
    assert_eq!(watched.is(Failed).await, "no answer within 50ms");
}

#[tokio::test]
async fn a_machine_answers_an_echo_or_does_not() {
    for address in ["127.0.0.1", "::1"] {
        let watched = Watched::new(CheckKind::Gateway {
            address: Some(address.parse().unwrap()),
        });
        assert_eq!(watched.is(Well).await, format!("{address} answers"));
    }
    let mut nobody = check(CheckKind::Gateway {
        // Reserved for examples.
        address: Some("192.0.2.1".parse().unwrap()),
    });
    nobody.timeout = Duration::from_millis(50);
    Watched::of(&config(vec![nobody]), None).is(Failed).await;
}

#[tokio::test]
async fn a_network_interface_is_there_and_up() {
    let link = |interface: &str| {
        Watched::new(CheckKind::Link {
            interface: interface.to_owned(),
        })
    };
    assert_eq!(link("lo").is(Well).await, "lo is up");
    assert_eq!(
        link("nope0").is(Failed).await,
        "there is no network interface nope0"
    );
}
