//! Runs the commands of a client that have come in together.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::net::TcpStream;

use super::session::{Access, Need, Scene, Session, is};
use crate::kv::command::{Command, SessionCommand};
use crate::kv::keyspace::{Keyspace, Refusal, Standing};
use crate::kv::resp::{Args, Reply, SPANS_KEPT_MAX, Span};
use crate::kv::space::Space;
use crate::position::Position;

/// How many bytes of answers there may be before the rest of the commands waits until they are sent.
const ANSWERS_BYTES_MAX: usize = 1 << 20;

/// How long commands of one client go on while they hold the store, before others get it.
const HOLD_TIME_MAX: Duration = Duration::from_millis(10);

/// How many bytes of operations the commands of one client make, before it waits until they are committed.
const HOLD_BYTES_MAX: usize = 4 << 20;

/// How often a client that waits is looked after, if it has sent more.
const GONE_PAUSE: Duration = Duration::from_millis(250);

/// A command that has come in.
#[derive(Debug)]
struct Request {
    /// `None` if nobody knows it.
    command: Option<&'static Command>,
    args: Range<usize>,
}

/// Commands that have come in together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    requests: Vec<Request>,
    spans: Vec<Span>,
}

impl Batch {
    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    pub(super) fn clear(&mut self) {
        self.requests.clear();
        self.spans.clear();
    }

    /// Forgets the commands, and gives back the memory that many arguments took.
    pub(super) fn shrink(&mut self) {
        self.clear();
        self.requests.shrink_to(SPANS_KEPT_MAX);
        self.spans.shrink_to(SPANS_KEPT_MAX);
    }

    /// Adds a command whose arguments lie at `spans` behind `offset` of `bytes`.
    pub(super) fn add(&mut self, bytes: &[u8], offset: usize, spans: &[Span]) {
        let start = self.spans.len();
        let moved =
            |span: &Span| span.start.saturating_add(offset)..span.end.saturating_add(offset);
        self.spans.extend(spans.iter().map(moved));
        let args = start..self.spans.len();
        let name = self
            .spans
            .get(start)
            .and_then(|name| bytes.get(name.clone()));
        let command = name.and_then(Command::named);
        self.requests.push(Request { command, args });
    }

    /// Returns whether a transaction may begin in it.
    fn has_multi(&self) -> bool {
        let mut commands = self.requests.iter().filter_map(|request| request.command);
        commands.any(|command| is(command, SessionCommand::Multi))
    }

    fn get<'a>(
        &'a self,
        index: usize,
        bytes: &'a [u8],
    ) -> Option<(Option<&'static Command>, Args<'a>)> {
        let request = self.requests.get(index)?;
        let spans = self.spans.get(request.args.clone()).unwrap_or_default();
        Some((request.command, Args::new(bytes, spans)))
    }
}

/// Answers that may be told once a position has settled, and the index of the next command.
pub(super) struct Pending {
    keyspace: Arc<dyn Keyspace>,
    position: Position,
    /// Where each of them begins, and whether it has anything to do with what has to settle.
    answers: Vec<(usize, bool)>,
}

impl Pending {
    /// Waits until the answers may be told. If what they tell of was not kept, they tell that instead.
    async fn settle(self, session: &mut Session, reply: &mut Reply) {
        session.last_write = session.last_write.max(self.position);
        let Err(refusal) = self.keyspace.settled(self.position).await else {
            return;
        };
        let Some(&(first, _)) = self.answers.first() else {
            return;
        };
        let written = reply.bytes().split_off(first);
        let ends = self.answers.iter().skip(1).map(|(start, _)| *start);
        let ends = ends.chain([first.saturating_add(written.len())]);
        for ((start, is_bound), end) in self.answers.iter().zip(ends) {
            let own = start.saturating_sub(first)..end.saturating_sub(first);
            match written.get(own) {
                Some(own) if !is_bound => reply.bytes().extend_from_slice(own),
                Some(_) | None => reply.answer(|_| Err(refusal.clone())),
            }
        }
    }
}

/// Why commands did not go on although they could have.
#[derive(Clone, Copy, Debug)]
enum Pause {
    /// They have held the store for [`HOLD_TIME_MAX`].
    Long,
    /// They have made more than [`HOLD_BYTES_MAX`].
    Large,
}

/// What is at hand while commands run.
struct Run<'r> {
    session: &'r mut Session,
    reply: &'r mut Reply,
    batch: &'r Batch,
    bytes: &'r [u8],
    /// The command that is to be run next.
    next: usize,
    /// How many bytes of operations were made of which it is not known that they are committed.
    made: usize,
    /// Whether there has to be a pause before it.
    pause: Option<Pause>,
}

impl Run<'_> {
    /// Runs commands from the next on, for as long as they need no more than what there is.
    fn run(&mut self, most: Access, scene: &mut Scene<'_, '_>, answers: &mut Vec<(usize, bool)>) {
        let first = self.next;
        let started = Instant::now();
        let before = scene
            .space
            .as_ref()
            .map_or(0, |space| space.pending_bytes());
        let made = self.made;
        while let Some((command, args)) = self.batch.get(self.next, self.bytes) {
            let need = self.session.need(command, args);
            let is_first = self.next == first;
            let fits = need.access <= most && !need.waits && (is_first || !need.standing);
            if !fits || self.session.is_closing || self.reply.len() > ANSWERS_BYTES_MAX {
                break;
            }
            answers.push((self.reply.len(), need.access != Access::None));
            self.session.run(command, args, scene, self.reply);
            self.next += 1;
            let Some(space) = &mut scene.space else {
                continue;
            };
            space.end_atom();
            self.made = made.saturating_add(space.pending_bytes().saturating_sub(before));
            self.pause = if self.made > HOLD_BYTES_MAX {
                Some(Pause::Large)
            } else if started.elapsed() > HOLD_TIME_MAX {
                Some(Pause::Long)
            } else {
                None
            };
            if self.pause.is_some() {
                break;
            }
        }
    }

    /// Runs the next command without the store.
    fn run_without(&mut self, standing: Option<&Standing>) {
        if let Some((command, args)) = self.batch.get(self.next, self.bytes) {
            let mut scene = Scene {
                space: None,
                standing,
            };
            self.session.run(command, args, &mut scene, self.reply);
        }
        self.next += 1;
    }

    /// Refuses the next command.
    fn refuse(&mut self, refusal: &Refusal) {
        if let Some((command, _)) = self.batch.get(self.next, self.bytes) {
            self.session.refuse(command, refusal, self.reply);
        }
        self.next += 1;
    }

    /// Runs `WAIT`, the next command.
    async fn wait(&mut self, keyspace: &Arc<dyn Keyspace>, args: Args<'_>, stream: &TcpStream) {
        let standing = keyspace.standing();
        match Session::wait_options(args, Some(&standing)) {
            Ok((count, limit)) => {
                let position = self.session.last_write;
                // It may wait for ever, and nobody else would see that the client has left.
                tokio::select! {
                    has = keyspace.replicated(position, count, limit) => self.reply.answer(|reply| {
                        reply.count(has);
                        Ok::<_, Refusal>(())
                    }),
                    () = gone(stream) => self.session.is_closing = true,
                }
            }
            Err(error) => self.reply.answer(|_| Err(error)),
        }
        self.next += 1;
    }
}

/// Waits until the client has left.
async fn gone(stream: &TcpStream) {
    // A failure is seen again by who reads next.
    while let Ok(ready) = stream.ready(Interest::READABLE).await
        && !ready.is_read_closed()
    {
        // It has sent more, and that says nothing.
        tokio::time::sleep(GONE_PAUSE).await;
    }
}

/// Runs commands from `first` on and writes their answers, which may be sent then. Returns the index of the
/// first that has not run: not all have when there is much to be sent, or the client has said goodbye.
pub(super) async fn answer(
    session: &mut Session,
    reply: &mut Reply,
    batch: &Batch,
    bytes: &[u8],
    first: usize,
    stream: &TcpStream,
) -> usize {
    let shared = Arc::clone(&session.shared);
    // Asked before anything is held that the store may need for its answer.
    session.refuses_writes = if session.transaction.is_some() || batch.has_multi() {
        (shared.source)().and_then(|keyspace| keyspace.refuses_writes())
    } else {
        None
    };
    let mut pending: Option<Pending> = None;
    let mut run = Run {
        session,
        reply,
        batch,
        bytes,
        next: first,
        made: 0,
        pause: None,
    };
    while let Some((command, args)) = batch.get(run.next, bytes) {
        if run.session.is_closing || run.reply.len() > ANSWERS_BYTES_MAX {
            break;
        }
        let need = run.session.need(command, args);
        let none = Need::default();
        if need.access == none.access && need.standing == none.standing {
            let mut bound = Vec::new();
            let answers = pending
                .as_mut()
                .map_or(&mut bound, |pending| &mut pending.answers);
            let mut scene = Scene {
                space: None,
                standing: None,
            };
            run.run(Access::None, &mut scene, answers);
            continue;
        }
        let store = pending
            .as_ref()
            .map(|pending| Arc::clone(&pending.keyspace));
        let Some(keyspace) = store.or_else(|| (shared.source)()) else {
            if need.does_without {
                run.run_without(None);
            } else {
                run.refuse(&Refusal::Loading);
            }
            continue;
        };
        if need.waits {
            if let Some(pending) = pending.take() {
                pending.settle(run.session, run.reply).await;
            }
            run.wait(&keyspace, args, stream).await;
            continue;
        }
        let standing = need.standing.then(|| keyspace.standing());
        let standing = standing.as_ref();
        let mut answers = match &mut pending {
            Some(pending) => std::mem::take(&mut pending.answers),
            None => Vec::new(),
        };
        // Behind a write of the same client everything is seen that it has written.
        let access = if pending.is_some() {
            need.access.max(Access::Write)
        } else {
            need.access
        };
        if pending.is_none() {
            run.made = 0;
        }
        let before = run.next;
        let mut act = |space: &mut Space<'_>| {
            let mut scene = Scene {
                space: Some(space),
                standing,
            };
            run.run(access, &mut scene, &mut answers);
        };
        let done = match access {
            Access::None => {
                let mut scene = Scene {
                    space: None,
                    standing,
                };
                run.run(access, &mut scene, &mut answers);
                Ok(None)
            }
            Access::Read => keyspace.read(&mut act).map(|()| None),
            Access::Write => keyspace.write(&mut act).map(Some),
        };
        // A store that says that it has run the commands, and has not, is none.
        let done = if done.is_ok() && run.next == before {
            Err(Refusal::Closed)
        } else {
            done
        };
        match (done, &mut pending) {
            (Ok(None), _) => {}
            (Ok(Some(position)), None) => {
                pending = Some(Pending {
                    keyspace,
                    position,
                    answers,
                });
            }
            (Ok(Some(position)), Some(pending)) => {
                pending.position = position;
                pending.answers = answers;
            }
            (Err(_), None) if need.does_without => run.run_without(standing),
            (Err(refusal), None) => run.refuse(&refusal),
            (Err(refusal), Some(waiting)) => {
                waiting.answers = answers;
                if need.access < Access::Write {
                    // It would have been run as a write only for what was written before it: once that has
                    // settled, it is run as what it is.
                    if let Some(pending) = pending.take() {
                        pending.settle(run.session, run.reply).await;
                    }
                } else {
                    waiting.answers.push((run.reply.len(), false));
                    run.refuse(&refusal);
                }
            }
        }
        match run.pause.take() {
            Some(Pause::Large) => {
                if let Some(pending) = pending.take() {
                    pending.settle(run.session, run.reply).await;
                }
            }
            Some(Pause::Long) => tokio::task::yield_now().await,
            None => {}
        }
    }
    let next = run.next;
    if let Some(pending) = pending {
        pending.settle(session, reply).await;
    }
    next
}
