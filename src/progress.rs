//! Progress: made where the work is done, shown where the person is.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use understudy_replication::store::{Progress, Unit};

/// Where nobody looks at a terminal, a line is printed this often.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// A piece of news on a long work, as it travels from the daemon to the command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum News {
    /// A piece of work starts.
    Start {
        /// What it is.
        what: String,
        /// How much there is to do.
        total: Option<u64>,
        /// The amounts are bytes.
        is_bytes: bool,
    },
    /// So much of it is done.
    At(u64),
    /// It has ended.
    End(String),
}

/// Sends news into a channel; when it is full, what is not new enough is dropped.
#[derive(Debug)]
pub(crate) struct Sender(pub(crate) mpsc::Sender<News>);

impl Sender {
    fn send(&self, news: News) {
        // Nobody listening, or a listener that is slow, must not hold the work up.
        let _dropped = self.0.try_send(news).is_err();
    }
}

impl Progress for Sender {
    fn start(&self, what: &str, total: Option<u64>, unit: Unit) {
        self.send(News::Start {
            what: what.to_owned(),
            total,
            is_bytes: unit == Unit::Bytes,
        });
    }

    fn at(&self, done: u64) {
        // Half of the places are left for beginnings and ends.
        if self.0.capacity() * 2 > self.0.max_capacity() {
            self.send(News::At(done));
        }
    }

    fn end(&self, outcome: &str) {
        self.send(News::End(outcome.to_owned()));
    }
}

/// Shows progress to a person: a bar on a terminal, plain lines elsewhere.
pub(crate) struct Display {
    state: Mutex<State>,
    is_terminal: bool,
}

struct State {
    bar: Option<ProgressBar>,
    what: String,
    total: Option<u64>,
    is_bytes: bool,
    told: Instant,
}

impl Display {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                bar: None,
                what: String::new(),
                total: None,
                is_bytes: false,
                told: Instant::now(),
            }),
            is_terminal: std::io::stderr().is_terminal(),
        }
    }

    /// Shows news from elsewhere.
    pub(crate) fn show(&self, news: &News) {
        match news {
            News::Start {
                what,
                total,
                is_bytes,
            } => self.begin(what, *total, *is_bytes),
            News::At(done) => self.at(*done),
            News::End(outcome) => self.end(outcome),
        }
    }

    fn begin(&self, what: &str, total: Option<u64>, is_bytes: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = state.bar.take() {
            bar.finish_and_clear();
        }
        what.clone_into(&mut state.what);
        state.total = total;
        state.is_bytes = is_bytes;
        state.told = Instant::now();
        if self.is_terminal {
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
            let template = match (total, is_bytes) {
                (Some(_), true) => {
                    "{msg:32} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta} left"
                }
                (Some(_), false) => "{msg:32} [{bar:30}] {pos}/{len} {eta} left",
                (None, true) => "{msg:32} {spinner} {bytes} {bytes_per_sec}",
                (None, false) => "{msg:32} {spinner} {elapsed}",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_message(what.to_owned());
            bar.enable_steady_tick(Duration::from_millis(200));
            state.bar = Some(bar);
        }
    }
}

impl Progress for Display {
    fn start(&self, what: &str, total: Option<u64>, unit: Unit) {
        self.begin(what, total, unit == Unit::Bytes);
    }

    fn at(&self, done: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = &state.bar {
            // What is copied may have grown since it was counted.
            if state.total.is_some_and(|total| done > total) {
                bar.set_length(done);
            }
            bar.set_position(done);
        } else if state.told.elapsed() >= LINE_INTERVAL {
            state.told = Instant::now();
            let amount = |amount| {
                if state.is_bytes {
                    indicatif::HumanBytes(amount).to_string()
                } else {
                    indicatif::HumanCount(amount).to_string()
                }
            };
            let of = state.total.map(|total| format!(" of {}", amount(total)));
            let line = format!("{}: {}{}", state.what, amount(done), of.unwrap_or_default());
            crate::output::tell(&line);
        }
    }

    fn end(&self, outcome: &str) {
        let bar = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.bar.take()
        };
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        crate::output::tell(&format!("  {outcome}"));
    }
}
