//! What happened in the histories: a rule that was never put to the test is not proven.

use std::fmt;

macro_rules! happenings {
    ($($name:ident $text:literal,)*) => {
        /// Something worth counting.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Happening { $($name),* }

        const TEXTS: &[&str] = &[$($text),*];
    };
}

happenings! {
    Opened "epochs opened",
    Forced "epochs opened by force",
    Promoted "promotions that ended",
    HandedOver "switchovers that ended",
    Refused "promotions refused",
    Overtaken "promotions overtaken by a higher epoch",
    Resumed "promotions that went on after a crash",
    Fenced "fences",
    FenceFailed "fences that failed, and were owed",
    Contact "meetings of two that served: the lesser is told",
    TwoServe "moments with two that serve (by force or a lie alone)",
    CommandWorked "fence commands that switched a node off",
    CommandLied "fence commands that lied",
    Reassured "returning primaries reassured",
    Alone "returning primaries that served alone",
    LeftAlone "returning primaries that stopped what they had found running",
    Rejoined "rejoins",
    OwnEpoch "epochs of a node's own that it heard of and did not remember",
    RecordFailed "records that failed",
    QueueFull "epochs dropped by a busy shell",
    Crash "crashes of a daemon",
    CrashBetween "crashes between two actions of one step",
    PowerOff "power cuts",
    Accepted "writes taken by a standby",
    Stale "writes refused as stale",
}

/// How often each happened.
#[derive(Clone)]
pub(crate) struct Seen([u64; TEXTS.len()]);

impl Default for Seen {
    fn default() -> Self {
        Self([0; TEXTS.len()])
    }
}

impl Seen {
    pub(crate) fn count(&mut self, happening: Happening) {
        self.0[happening as usize] += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (sum, more) in self.0.iter_mut().zip(other.0) {
            *sum += more;
        }
    }

    /// The first thing that never happened.
    pub(crate) fn missing(&self) -> Option<&'static str> {
        let mut all = self.0.iter().zip(TEXTS);
        all.find(|(count, _)| **count == 0).map(|(_, text)| *text)
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (count, text) in self.0.iter().zip(TEXTS) {
            writeln!(f, "{count:>12} {text}")?;
        }
        Ok(())
    }
}
