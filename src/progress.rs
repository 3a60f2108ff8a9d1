//! Progress: made where the work is done, shown where the person is.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use understudy_config::NodeName;
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
    /// News of one of several sides that work at once.
    Of(NodeName, Box<News>),
    /// There is nothing new, and the work goes on: so that a dead connection can be told from a long work.
    Beat,
}

/// Sends news into a channel; when it is full, what is not new enough is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    channel: mpsc::Sender<News>,
    side: Option<NodeName>,
}

impl Sender {
    pub(crate) fn new(channel: mpsc::Sender<News>) -> Self {
        Self {
            channel,
            side: None,
        }
    }

    /// Returns a sender whose news are of one of several sides that work at once.
    pub(crate) fn of(&self, side: NodeName) -> Self {
        Self {
            channel: self.channel.clone(),
            side: Some(side),
        }
    }

    /// Passes on what another node has told.
    pub(crate) fn send(&self, news: News) {
        let news = match &self.side {
            Some(side) => News::Of(side.clone(), Box::new(news)),
            None => news,
        };
        // Nobody listening, or a listener that is slow, must not hold the work up.
        let _dropped = self.channel.try_send(news).is_err();
    }

    /// Sends how far the work is, unless the listener is slow: half of the places are left for
    /// beginnings and ends.
    pub(crate) fn send_amount(&self, done: u64) {
        if self.channel.capacity() * 2 > self.channel.max_capacity() {
            self.send(News::At(done));
        }
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
        self.send_amount(done);
    }

    fn end(&self, outcome: &str) {
        self.send(News::End(outcome.to_owned()));
    }
}

/// Shows progress to a person: a bar on a terminal for each side that works, plain lines elsewhere.
pub(crate) struct Display {
    bars: MultiProgress,
    sides: Mutex<BTreeMap<Option<NodeName>, State>>,
    is_terminal: bool,
}

struct State {
    bar: Option<ProgressBar>,
    what: String,
    total: Option<u64>,
    is_bytes: bool,
    told: Instant,
}

impl State {
    fn new() -> Self {
        Self {
            bar: None,
            what: String::new(),
            total: None,
            is_bytes: false,
            told: Instant::now(),
        }
    }
}

impl Display {
    pub(crate) fn new() -> Self {
        Self {
            bars: MultiProgress::with_draw_target(ProgressDrawTarget::stderr()),
            sides: Mutex::default(),
            is_terminal: std::io::stderr().is_terminal(),
        }
    }

    /// Shows news from elsewhere.
    pub(crate) fn show(&self, news: &News) {
        self.show_of(None, news);
    }

    fn show_of(&self, side: Option<&NodeName>, news: &News) {
        match news {
            News::Start {
                what,
                total,
                is_bytes,
            } => self.begin(side, what, *total, *is_bytes),
            News::At(done) => self.advance(side, *done),
            News::End(outcome) => self.finish(side, outcome),
            // A side has no sides.
            News::Of(side, news) => match news.as_ref() {
                News::Of(..) => {}
                news @ (News::Start { .. } | News::At(_) | News::End(_) | News::Beat) => {
                    self.show_of(Some(side), news);
                }
            },
            News::Beat => {}
        }
    }

    /// Does something with what is known of a side.
    fn with<T>(&self, side: Option<&NodeName>, act: impl FnOnce(&mut State) -> T) -> T {
        let mut sides = self.sides.lock().unwrap_or_else(PoisonError::into_inner);
        act(sides.entry(side.cloned()).or_insert_with(State::new))
    }

    fn begin(&self, side: Option<&NodeName>, what: &str, total: Option<u64>, is_bytes: bool) {
        let what = match side {
            Some(side) => format!("{side}: {what}"),
            None => what.to_owned(),
        };
        self.with(side, |state| self.begin_in(state, what, total, is_bytes));
    }

    fn begin_in(&self, state: &mut State, what: String, total: Option<u64>, is_bytes: bool) {
        if let Some(bar) = state.bar.take() {
            bar.finish_and_clear();
        }
        state.what = what;
        state.total = total;
        state.is_bytes = is_bytes;
        state.told = Instant::now();
        if self.is_terminal {
            let bar = self.bars.add(ProgressBar::with_draw_target(
                total,
                ProgressDrawTarget::stderr(),
            ));
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
            bar.set_message(state.what.clone());
            bar.enable_steady_tick(Duration::from_millis(200));
            state.bar = Some(bar);
        }
    }

    fn advance(&self, side: Option<&NodeName>, done: u64) {
        self.with(side, |state| self.advance_in(state, done));
    }

    fn advance_in(&self, state: &mut State, done: u64) {
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

    fn finish(&self, side: Option<&NodeName>, outcome: &str) {
        if let Some(bar) = self.with(side, |state| state.bar.take()) {
            bar.finish_and_clear();
        }
        let line = match side {
            Some(side) => format!("  {side}: {outcome}"),
            None => format!("  {outcome}"),
        };
        // The bars of other sides are taken away and put back around the line.
        self.bars.suspend(|| crate::output::tell(&line));
    }
}

impl Progress for Display {
    fn start(&self, what: &str, total: Option<u64>, unit: Unit) {
        self.begin(None, what, total, unit == Unit::Bytes);
    }

    fn at(&self, done: u64) {
        self.advance(None, done);
    }

    fn end(&self, outcome: &str) {
        self.finish(None, outcome);
    }
}
