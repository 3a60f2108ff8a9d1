//! Work that is to go on for ever is begun again when it breaks.

use std::any::Any;
use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::time::Instant;

/// The first pause before work is begun again, and the longest.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Work that ran for so long was well: what breaks it then is told anew, and the first pause is short again.
const WELL_AFTER: Duration = Duration::from_secs(600);

/// How much of what a panic says is told.
const WORDS_MAX: usize = 300;

/// Work that has broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// What the panic said.
    pub why: String,
    /// How long it is until it is begun again.
    pub pause: Duration,
    /// It was well before, or broke in another way.
    pub is_news: bool,
}

/// How work that breaks again and again is begun again. Pure.
#[derive(Debug)]
struct Patience {
    pause: Duration,
    told: Option<String>,
}

impl Patience {
    fn new() -> Self {
        Self {
            pause: PAUSE_MIN,
            told: None,
        }
    }

    /// Takes in that work has broken that `ran` for so long.
    fn broke(&mut self, ran: Duration, why: String) -> Broken {
        if ran > WELL_AFTER {
            *self = Self::new();
        }
        let pause = self.pause;
        self.pause = pause.saturating_mul(2).min(PAUSE_MAX);
        let is_news = self.told.as_ref() != Some(&why);
        self.told = Some(why.clone());
        Broken {
            why,
            pause,
            is_news,
        }
    }
}

/// Does `work` for ever: when it panics, `tell` is called, and after a pause that grows to a minute it is begun
/// again. What is known of the work's subject is of no worth from then on; `tell` is to say so. Dropping the future
/// ends it.
pub async fn keep_up<F: Future<Output = Infallible>>(
    work: impl Fn() -> F,
    tell: impl Fn(&Broken),
) -> Infallible {
    let mut patience = Patience::new();
    loop {
        let begun = Instant::now();
        // What work shares with others it locks, and a lock outlives a panic.
        let panic = match AssertUnwindSafe(work()).catch_unwind().await {
            Ok(never) => match never {},
            Err(panic) => panic,
        };
        let broken = patience.broke(begun.elapsed(), words(panic.as_ref()));
        tell(&broken);
        tokio::time::sleep(broken.pause).await;
    }
}

/// Returns what a panic says.
fn words(panic: &(dyn Any + Send)) -> String {
    let said = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let said = said.unwrap_or("it does not say why");
    said.chars().take(WORDS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_breaks_is_begun_again_ever_more_patiently_and_told_once() {
        let mut patience = Patience::new();
        let short = Duration::from_secs(5);
        let runs = [
            (short, "broke", 1, true),
            (short, "broke", 2, false),
            (short, "otherwise", 4, true),
            (short, "broke", 8, true),
            (short, "broke", 16, false),
            (short, "broke", 32, false),
            (short, "broke", 60, false),
            (short, "broke", 60, false),
            // It was well for long.
            (WELL_AFTER * 2, "broke", 1, true),
        ];
        for (ran, why, seconds, is_news) in runs {
            let expected = Broken {
                why: why.to_owned(),
                pause: Duration::from_secs(seconds),
                is_news,
            };
            assert_eq!(patience.broke(ran, why.to_owned()), expected);
        }
    }

    #[tokio::test]
    async fn what_a_panic_says_is_told() {
        let (said, mut told) = tokio::sync::mpsc::unbounded_channel();
        let work = || async { panic!("it is number {}", 7) };
        let tell = |broken: &Broken| said.send(broken.why.clone()).unwrap();
        tokio::select! {
            never = keep_up(work, tell) => match never {},
            why = told.recv() => assert_eq!(why.unwrap(), "it is number 7"),
        }
    }
}
