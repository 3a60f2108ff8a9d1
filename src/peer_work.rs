//! Work that one node has another do: a stream of lines that tells how far it is and how it ended.
//!
//! The side that works beats once a second, so that a side that waits knows it to be alive; a side that
//! works learns when nobody waits any more.

use std::pin::pin;
use std::time::Duration;

use axum::response::Response;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use understudy_replication::store::{Stop, Stopper};
use understudy_replication::transport::{FrameSender, PeerClient, frames};

use crate::admin_api::{Line, NEWS_WAITING_MAX};
use crate::failure::Failure;
use crate::progress::{News, Sender};

/// A side that works says at least so often that it does.
const BEAT_INTERVAL: Duration = Duration::from_secs(1);

/// A side that says nothing for this long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// Has `peer` do what it does at `path`; tells its progress. Ends with `None` when told to stop, which the
/// peer notices.
///
/// # Errors
/// The failure of the work, or that the peer does not tell how it ended.
pub(crate) async fn ask<T: DeserializeOwned>(
    peer: &PeerClient,
    path: &str,
    request: &(impl Serialize + Sync),
    progress: &Sender,
    stop: &Stop,
) -> Result<Option<T>, Failure> {
    let mut lines = peer.stream(path, request).await?;
    loop {
        let line = tokio::select! {
            line = tokio::time::timeout(SILENCE_MAX, lines.next()) => line,
            // The reader is dropped, which the peer notices.
            () = stop.wait() => return Ok(None),
        };
        let line = match line {
            Ok(line) => line?.ok_or_else(|| {
                Failure::failed(format!("node {} broke the work off", peer.node()))
                    .hint(format!("look at the log of node {}", peer.node()))
            })?,
            Err(_) => {
                return Err(Failure::failed(format!(
                    "node {} said nothing for {} s",
                    peer.node(),
                    SILENCE_MAX.as_secs()
                )));
            }
        };
        match serde_json::from_slice(&line)? {
            Line::News(News::At(done)) => progress.send_amount(done),
            Line::News(News::Of(..)) => {}
            Line::News(news @ (News::Start { .. } | News::End(_) | News::Beat)) => {
                progress.send(news);
            }
            Line::Result(value) => return Ok(Some(serde_json::from_value(value)?)),
            Line::Failure(failure) => return Err(failure),
        }
    }
}

/// Does `work` for a peer. It is told to stop when the peer does not listen any more; whether it heeds
/// that is its own matter.
pub(crate) fn answer<T, R>(work: impl FnOnce(Sender, Stop) -> R + Send + 'static) -> Response
where
    T: Serialize + Send,
    R: Future<Output = Result<T, Failure>> + Send + 'static,
{
    let (sender, response) = frames();
    tokio::spawn(async move {
        let (stopper, stop) = Stopper::new();
        let (news, mut told) = mpsc::channel(NEWS_WAITING_MAX);
        let mut work = pin!(work(Sender::new(news), stop));
        let mut beat = tokio::time::interval(BEAT_INTERVAL);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let result = loop {
            let news = tokio::select! {
                result = &mut work => break result,
                Some(news) = told.recv() => news,
                _ = beat.tick() => News::Beat,
                () = sender.closed() => {
                    stopper.stop();
                    break work.await;
                }
            };
            if !say(&sender, &Line::News(news)).await {
                stopper.stop();
            }
        };
        while let Ok(news) = told.try_recv() {
            say(&sender, &Line::News(news)).await;
        }
        let line = match result.and_then(|value| Ok(serde_json::to_value(value)?)) {
            Ok(value) => Line::Result(value),
            Err(failure) => Line::Failure(failure),
        };
        say(&sender, &line).await;
    });
    response
}

/// Sends a line; returns whether somebody listens.
async fn say(sender: &FrameSender, line: &Line) -> bool {
    match serde_json::to_vec(line) {
        Ok(frame) => sender.send(&frame).await.is_ok(),
        Err(error) => {
            tracing::warn!(%error, "cannot tell a peer how far its work is");
            false
        }
    }
}
