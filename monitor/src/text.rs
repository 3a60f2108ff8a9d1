//! What `understudy status` prints: one screen that answers "is it well, could I promote, what
//! should I do", and then shows what the answers rest on.

use understudy_replication::preflight::Preflight;
use understudy_replication::status::{
    Hold, IndexState, JobOutcome, JobState, JobStatus, LinkStatus, PromotionStatus, ProofStatus,
    ReplicationMode, RoleName, ServiceState, Status,
};
use understudy_replication::store::StoreId;
use understudy_replication::wall_time::WallTime;

use crate::peer::{Peer, peers};
use crate::quantity::{age, distance, plural, span};
use crate::surroundings;

/// How many of the newest events are shown.
const EVENTS_SHOWN: usize = 5;

/// Renders `status` for people, as seen at `now` by the clock of the node that told it.
pub fn text(status: &Status, now: WallTime) -> String {
    let peers = peers(status);
    let mut page = Page::default();
    answers(&mut page, status, &peers, now);
    if let Some(promotion) = &status.promotion {
        show_promotion(&mut page, promotion);
    }
    show_problems(&mut page, status);
    show_peers(&mut page, &peers, now);
    show_links(&mut page, status, now);
    show_stores(&mut page, status, &peers, now);
    surroundings::show_checks(&mut page, status, now);
    show_services(&mut page, status, now);
    show_jobs(&mut page, status, now);
    show_indexes(&mut page, status, now);
    show_events(&mut page, status);
    page.0
}

fn answers(page: &mut Page, status: &Status, peers: &[Peer<'_>], now: WallTime) {
    page.line(format!(
        "node {} of cluster {} is {} in epoch {}, {}",
        status.node,
        status.cluster,
        status.role.as_str(),
        status.epoch,
        match status.replication_mode {
            ReplicationMode::Master => "mode master",
            ReplicationMode::Slave => "mode slave",
            ReplicationMode::Standalone => "mode standalone",
        },
    ));
    surroundings::show_clone(page, status);
    // A clone is to be alone.
    let is_alone =
        status.replication_mode == ReplicationMode::Standalone && status.clone_of.is_none();
    let troubles = troubles(status, peers);
    let well = match (troubles.is_empty(), is_alone) {
        (true, false) => "yes".to_owned(),
        (true, true) => "yes, but no standby keeps a copy".to_owned(),
        (false, _) => format!("no: {}", troubles.join("; ")),
    };
    page.line(format!("  well     {well}"));
    page.line(format!("  promote  {}", could_promote(status, peers)));
    if let Some(proof) = &status.proof {
        page.line(format!("  proven   {}", proven(proof, now)));
    }
    page.line(format!("  do       {}", next_step(status, peers, now)));
    if let Some(pause) = &status.pause {
        page.line(format!(
            "  paused   by {} on node {} until {}: {}",
            pause.owner, pause.node, pause.until, pause.reason
        ));
    }
    page.line(format!(
        "  since    {} ({}); daemon {} for {}",
        status.role_since,
        age(status.role_since, now),
        status.software,
        age(status.started, now),
    ));
    surroundings::show_address(page, status, now);
    surroundings::show_check_count(page, status);
}

/// Returns when it was last shown that a promotion of the node would work.
fn proven(proof: &ProofStatus, now: WallTime) -> String {
    let last = match (proof.proven, proof.seconds) {
        (None, _) => "never; `understudy drill` rehearses a promotion".to_owned(),
        (Some(proven), seconds) => {
            let took = seconds.map_or_else(String::new, |it| format!("recovery in {}, ", span(it)));
            let is_old = if proof.is_old {
                ", which is too long"
            } else {
                ""
            };
            format!("{took}{} ago{is_old}", age(proven, now))
        }
    };
    match (&proof.failure, proof.tried) {
        (Some(failure), Some(tried)) => {
            let tried = age(tried, now);
            format!("{last}; the newest rehearsal, {tried} ago, FAILED: {failure}")
        }
        (None, _) | (Some(_), None) => last,
    }
}

/// Returns what is not as it should be, each in a few words.
fn troubles(status: &Status, peers: &[Peer<'_>]) -> Vec<String> {
    let mut troubles = Vec::new();
    match status.role {
        RoleName::Primary | RoleName::Promoting => {}
        RoleName::Standby if !peers.is_empty() => {}
        RoleName::Standby => troubles.push("it follows no primary".to_owned()),
        RoleName::Returning => {
            troubles.push("it serves nothing until it has heard a peer".to_owned())
        }
        RoleName::Fenced => troubles.push("it has been superseded, and serves nothing".to_owned()),
    }
    match unfinished(status) {
        Some(promotion) if promotion.is_running => troubles.push("a promotion runs".to_owned()),
        Some(_) => troubles.push("a promotion was cut short".to_owned()),
        None => {}
    }
    for peer in peers {
        if !peer.is_connected {
            troubles.push(format!("{} is not connected", peer.name));
        }
        for lag in &peer.lags {
            let store = &lag.id.name;
            if lag.must_reseed() {
                troubles.push(format!("{store} must be reseeded"));
            } else if lag.stalled().is_some() {
                troubles.push(format!("{store} is stalled"));
            } else if peer.is_connected && lag.unknown().is_some() {
                troubles.push(format!("the lag of {store} is unknown"));
            }
        }
    }
    for service in &status.services {
        if service.state == ServiceState::Fault {
            troubles.push(format!("service {} is in fault", service.name));
        }
    }
    for job in &status.jobs {
        if has_failed(job) {
            troubles.push(format!("job {} has failed", job.name));
        }
    }
    for index in &status.indexes {
        if index.state == IndexState::Failed {
            troubles.push(format!("index {} could not be built", index.name));
        }
    }
    troubles.extend(surroundings::troubles(status));
    match count(status) {
        0 => {}
        count => troubles.push(plural(count, "problem")),
    }
    troubles
}

/// Returns whether the newest run of a job of this node has failed.
fn has_failed(job: &JobStatus) -> bool {
    let is_here = job.state != JobState::Elsewhere;
    let mut last = job.last.iter();
    is_here && last.any(|run| run.outcome == JobOutcome::Failed)
}

/// Returns the promotion that this node has yet to finish. A node that has been superseded since, or
/// does not know whether it has, finishes none.
fn unfinished(status: &Status) -> Option<&PromotionStatus> {
    match status.role {
        RoleName::Primary | RoleName::Standby | RoleName::Promoting => status.promotion.as_ref(),
        RoleName::Returning | RoleName::Fenced => None,
    }
}

/// Returns what a promotion would give now, and where.
fn could_promote(status: &Status, peers: &[Peer<'_>]) -> String {
    match (unfinished(status), status.role) {
        (Some(promotion), _) if promotion.is_running => return "runs on this node now".to_owned(),
        // Nothing has been opened: the next one begins anew.
        (Some(_), RoleName::Standby) | (None, _) => {}
        (Some(_), _) => return "was cut short on this node, and is not finished".to_owned(),
    }
    match status.role {
        RoleName::Standby => match (
            refusal(status.preflight.as_ref()).or_else(|| surroundings::blocks_promotion(status)),
            peers,
        ) {
            (Some(refusal), _) => refusal,
            (None, []) => "nothing is known of what would be lost".to_owned(),
            (None, [primary, ..]) => format!("this node {}", outlook(primary)),
        },
        RoleName::Primary if peers.is_empty() => "there is no standby to promote".to_owned(),
        RoleName::Primary => {
            let of_peers = peers.iter().map(|peer| {
                let standby = status
                    .standbys
                    .iter()
                    .find(|it| it.node.as_str() == peer.name);
                let preflight = standby.and_then(|standby| standby.preflight.as_ref());
                match refusal(preflight) {
                    Some(refusal) => format!("{}: {refusal}", peer.name),
                    None => format!("{} {}", peer.name, outlook(peer)),
                }
            });
            of_peers.collect::<Vec<_>>().join("; ")
        }
        RoleName::Promoting => "has begun on this node, and is not finished".to_owned(),
        RoleName::Returning | RoleName::Fenced => match &status.primary {
            Some(primary) if *primary != status.node => {
                format!("not here: the primary is {primary}")
            }
            Some(_) | None => "not here: another node may have been promoted".to_owned(),
        },
    }
}

/// Returns why a promotion would be refused, by the standby's own plan; `None` where it would not.
fn refusal(preflight: Option<&Preflight>) -> Option<String> {
    let [first, others @ ..] = preflight?.promote.as_slice() else {
        return None;
    };
    let more = match others.len() {
        0 => String::new(),
        more => format!(" (and {more} more: `understudy promote --dry-run` tells all)"),
    };
    Some(format!("no: {}; {}{more}", first.what, first.mend))
}

/// Returns what a standby's copy would give if it were promoted now.
fn outlook(peer: &Peer<'_>) -> String {
    let must_reseed: Vec<_> = peer
        .lags
        .iter()
        .filter(|lag| lag.must_reseed())
        .map(|lag| lag.id.name.as_str())
        .collect();
    if !must_reseed.is_empty() {
        return format!(
            "would serve an old copy of {}, which must be reseeded",
            must_reseed.join(", ")
        );
    }
    let Some(cut) = peer.cut else {
        return "has no moment yet that every store has reached".to_owned();
    };
    let unflushed: Option<Vec<_>> = peer
        .lags
        .iter()
        .map(|lag| Some((lag.id, lag.flushed()?)))
        .collect();
    let loss = match unflushed {
        None => "what was written after that may be lost".to_owned(),
        Some(lags) => {
            let lost = lags.into_iter().filter(|(_, lag)| *lag > 0);
            let lost: Vec<_> = lost
                .map(|(id, lag)| format!("{} of {}", distance(id.kind, lag), id.name))
                .collect();
            if lost.is_empty() {
                "nothing known would be lost".to_owned()
            } else {
                format!("{} would be lost", lost.join(" and "))
            }
        }
    };
    format!("would serve the state of {cut} or newer; {loss}")
}

/// Returns the one thing to do first.
fn next_step(status: &Status, peers: &[Peer<'_>], now: WallTime) -> String {
    if let Some(promotion) = unfinished(status) {
        return if promotion.is_running {
            "wait: `understudy status --watch` shows each step".to_owned()
        } else if promotion.error.is_some() {
            "see at PROMOTION what has stopped it: mend that, and run the command again".to_owned()
        } else {
            "run `understudy promote`: it takes up what is left to do".to_owned()
        };
    }
    match status.role {
        RoleName::Fenced => {
            return "run `understudy rejoin`: it becomes a standby, and what only it has is kept aside".to_owned();
        }
        RoleName::Returning => {
            return "start another node of the cluster, or mend the network to it".to_owned();
        }
        RoleName::Promoting => {
            return "run `understudy promote`: it takes up what is left to do".to_owned();
        }
        RoleName::Standby if peers.is_empty() => {
            return "look whether the primary runs, and the network to it".to_owned();
        }
        RoleName::Primary | RoleName::Standby => {}
    }
    if let Some(peer) = peers.iter().find(|peer| !peer.is_connected) {
        let look = format!("look whether {} runs, and the network to it", peer.name);
        if status.role != RoleName::Standby {
            return look;
        }
        let unmet = status.preflight.as_ref().and_then(|it| it.promote.first());
        return match unmet {
            Some(unmet) => format!("{look}; if it is lost: {}", unmet.mend),
            None => format!("{look}; if it is lost, run `understudy promote`"),
        };
    }
    if count(status) > 0 {
        return "read the problems below: each says what to do".to_owned();
    }
    let lags = || peers.iter().flat_map(|peer| &peer.lags);
    if let Some(lag) = lags().find(|lag| lag.must_reseed()) {
        return format!(
            "run `understudy rejoin` on the standby, for {}",
            lag.id.name
        );
    }
    if let Some(lag) = lags().find(|lag| lag.stalled().is_some()) {
        return format!("mend what keeps {} from advancing", lag.id.name);
    }
    if let Some(lag) = lags().find(|lag| lag.unknown().is_some()) {
        return format!(
            "see below why the lag of {} is unknown; if it stays so, `Lag` in the operations guide",
            lag.id.name
        );
    }
    if status
        .services
        .iter()
        .any(|service| service.state == ServiceState::Fault)
    {
        return "mend the service that is in fault: `understudy services` tells more".to_owned();
    }
    if let Some(job) = status.jobs.iter().find(|job| has_failed(job)) {
        return format!("see why job {} failed: `understudy events`", job.name);
    }
    let is_held = |hold: Option<Hold>| hold == Some(Hold::Failover);
    let mut services = status.services.iter();
    let mut jobs = status.jobs.iter();
    if services.any(|it| is_held(it.hold)) || jobs.any(|it| is_held(it.hold)) {
        return "start what is held back since the promotion: `understudy services` lists it"
            .to_owned();
    }
    if let Some(index) = status
        .indexes
        .iter()
        .find(|index| index.state == IndexState::Failed)
    {
        return format!(
            "mend what failed, then run `understudy index rebuild {}`",
            index.name
        );
    }
    if let Some(step) = surroundings::next_step(status, now) {
        return step;
    }
    if let Some(clone) = &status.clone_of {
        return format!(
            "nothing: try things; `understudy clone remove {} --stop`{} removes it",
            clone.name,
            surroundings::on_maker(clone)
        );
    }
    if status.replication_mode == ReplicationMode::Standalone {
        return "run `understudy invite NODE` to add a standby".to_owned();
    }
    "nothing".to_owned()
}

/// Returns how many problems there are but for a pause: that was asked for.
fn count(status: &Status) -> u64 {
    let all = u64::try_from(problems(status).len()).unwrap_or(u64::MAX);
    all.saturating_sub(status.pause.is_some().into())
}

/// Returns what needs an operator: the node's problems, and those of stores that are not among them.
fn problems(status: &Status) -> Vec<String> {
    let mut problems = status.problems.clone();
    for store in &status.stores {
        for problem in &store.problems {
            if !status
                .problems
                .iter()
                .any(|of_node| of_node.contains(problem))
            {
                problems.push(format!("{}: {problem}", store.id.name));
            }
        }
    }
    problems
}

fn show_promotion(page: &mut Page, promotion: &PromotionStatus) {
    let at = promotion.step.as_deref().unwrap_or("the next step");
    page.line("");
    page.line(match (&promotion.error, promotion.is_running) {
        (_, true) => format!("PROMOTION to epoch {} runs: {at}", promotion.epoch),
        (None, false) => format!(
            "PROMOTION to epoch {} was cut short at: {at}",
            promotion.epoch
        ),
        (Some(error), false) => {
            format!(
                "PROMOTION to epoch {} was cut short at: {at}: {error}",
                promotion.epoch
            )
        }
    });
    for step in &promotion.done {
        page.line(format!("  done: {step}"));
    }
}

fn show_problems(page: &mut Page, status: &Status) {
    let problems = problems(status);
    if problems.is_empty() {
        return;
    }
    page.line("");
    page.line("PROBLEMS");
    for problem in problems {
        page.line(format!("  {problem}"));
    }
}

fn show_peers(page: &mut Page, peers: &[Peer<'_>], now: WallTime) {
    let mut table = Table::new(["PEER", "ADDRESS", "LINK", "HEARD", "CUT"]);
    for peer in peers {
        table.row([
            peer.name.to_owned(),
            peer.ip.unwrap_or("-").to_owned(),
            if peer.is_connected {
                "connected"
            } else {
                "down"
            }
            .to_owned(),
            peer.seen
                .map_or("never".to_owned(), |seen| format!("{} ago", age(seen, now))),
            peer.cut.map_or("unknown".to_owned(), |cut| cut.to_string()),
        ]);
    }
    page.table(&table);
}

/// Shows every way to every peer, where a peer has more than one.
fn show_links(page: &mut Page, status: &Status, now: WallTime) {
    let is_one_of_several = |link: &LinkStatus| {
        let of_peer = status.links.iter().filter(|it| it.node == link.node);
        of_peer.count() > 1
    };
    let mut table = Table::new(["LINK TO", "AT", "STATE", "SINCE", "ROUND TRIP"]);
    for link in status.links.iter().filter(|link| is_one_of_several(link)) {
        table.row([
            link.node.to_string(),
            link.address.clone(),
            if link.is_up { "up" } else { "down" }.to_owned(),
            age(link.since, now),
            match link.round_trip_ms {
                Some(millis) => format!("{millis:.1} ms"),
                None => link.message.clone(),
            },
        ]);
    }
    page.table(&table);
}

fn show_stores(page: &mut Page, status: &Status, peers: &[Peer<'_>], now: WallTime) {
    let mut table = Table::new([
        "STORE",
        "KIND",
        "POSITION HERE",
        "PEER",
        "NOT FLUSHED",
        "NOT APPLIED",
        "BEHIND",
    ]);
    let position = |id: &StoreId| {
        let store = status.stores.iter().find(|store| store.id == *id)?;
        store
            .position_text
            .clone()
            .or_else(|| Some(store.position?.to_string()))
    };
    if peers.is_empty() {
        for store in &status.stores {
            let here = position(&store.id).unwrap_or_else(|| "unknown".to_owned());
            let none = || "-".to_owned();
            let (name, kind) = (store.id.name.to_string(), store.id.kind.to_string());
            table.row([name, kind, here, none(), none(), none(), none()]);
        }
    }
    let unknown = || "unknown".to_owned();
    let mut notes = Notes::default();
    for peer in peers {
        for lag in &peer.lags {
            let kind = lag.id.kind;
            table.row([
                lag.id.name.to_string(),
                kind.to_string(),
                position(lag.id).unwrap_or_else(unknown),
                peer.name.to_owned(),
                lag.flushed()
                    .map_or_else(unknown, |lag| distance(kind, lag)),
                lag.applied()
                    .map_or_else(unknown, |lag| distance(kind, lag)),
                lag.seconds().map_or_else(unknown, span),
            ]);
            let store = format!("{} ({})", lag.id.name, peer.name);
            if lag.must_reseed() {
                notes.add(
                    &store,
                    "must be compared whole before it can follow again".to_owned(),
                );
            }
            if let Some(reason) = lag.stalled() {
                notes.add(&store, format!("does not advance: {reason}"));
            }
            match lag.unknown() {
                Some((reason, Some(since))) => {
                    notes.add(&store, format!("unknown for {}: {reason}", age(since, now)));
                }
                Some((reason, None)) => notes.add(&store, format!("unknown: {reason}")),
                None => {}
            }
        }
    }
    page.table(&table);
    for (note, stores) in notes.0 {
        page.line(format!("  {}: {note}", stores.join(", ")));
    }
}

fn show_services(page: &mut Page, status: &Status, now: WallTime) {
    let mut table = Table::new(["SERVICE", "STATE", "FOR", "LAST MESSAGE"]);
    for service in &status.services {
        table.row([
            service.name.to_string(),
            service.state.as_str().replace('_', " "),
            age(service.since, now),
            service.message.clone(),
        ]);
    }
    page.table(&table);
}

fn show_jobs(page: &mut Page, status: &Status, now: WallTime) {
    // Those that do what they should would fill the screen; `understudy services` shows them.
    let mut table = Table::new(["JOB", "STATE", "LAST RUN", "LAST MESSAGE"]);
    for job in &status.jobs {
        let last = job.last.as_ref();
        if job.state == JobState::Held || has_failed(job) {
            table.row([
                job.name.to_string(),
                job.state.as_str().to_owned(),
                last.map_or("never".to_owned(), |run| {
                    format!("{} {} ago", run.outcome.as_str(), age(run.ended, now))
                }),
                last.map_or(String::new(), |run| run.message.clone()),
            ]);
        }
    }
    page.table(&table);
}

fn show_indexes(page: &mut Page, status: &Status, now: WallTime) {
    let mut table = Table::new(["INDEX", "STATE", "DOCUMENTS", "BUILT", "KEPT", "MESSAGE"]);
    for index in &status.indexes {
        table.row([
            index.name.to_string(),
            index.state.as_str().to_owned(),
            match index.documents_total {
                Some(total) => match index.percent {
                    Some(percent) => format!("{} of {total} ({percent} %)", index.documents),
                    None => format!("{} of {total}", index.documents),
                },
                None => index.documents.to_string(),
            },
            index.built.map_or("never".to_owned(), |built| {
                format!("{} ago", age(built, now))
            }),
            match index.behind_seconds {
                Some(seconds) if index.is_warm => format!("warm, {seconds} s behind"),
                Some(_) | None => "cold".to_owned(),
            },
            index.message.clone().unwrap_or_default(),
        ]);
    }
    page.table(&table);
}

fn show_events(page: &mut Page, status: &Status) {
    let mut table = Table::new(["EVENT", "SEVERITY", "WHAT HAPPENED"]);
    let skipped = status.events.len().saturating_sub(EVENTS_SHOWN);
    for event in status.events.iter().skip(skipped) {
        table.row([
            event.time.to_string(),
            event.severity.to_string(),
            event.message.clone(),
        ]);
    }
    page.table(&table);
}

/// What is to be said of stores, each said once for all of which it is true.
#[derive(Default)]
struct Notes(Vec<(String, Vec<String>)>);

impl Notes {
    fn add(&mut self, store: &str, note: String) {
        let store = store.to_owned();
        match self.0.iter_mut().find(|(known, _)| *known == note) {
            Some((_, stores)) => stores.push(store),
            None => self.0.push((note, vec![store])),
        }
    }
}

/// Rows whose first is the heading, shown in columns.
pub(crate) struct Table<const N: usize>(Vec<[String; N]>);

impl<const N: usize> Table<N> {
    pub(crate) fn new(heading: [&str; N]) -> Self {
        Self(vec![heading.map(str::to_owned)])
    }

    pub(crate) fn row(&mut self, row: [String; N]) {
        self.0.push(row);
    }
}

/// The lines that are printed.
#[derive(Default)]
pub(crate) struct Page(pub(crate) String);

impl Page {
    /// Adds a line. Control characters, which messages of foreign programs may hold, become blanks:
    /// they could rewrite what the terminal shows.
    pub(crate) fn line(&mut self, line: impl AsRef<str>) {
        let shown = line.as_ref().trim_end();
        self.0
            .extend(shown.chars().map(|c| if c.is_control() { ' ' } else { c }));
        self.0.push('\n');
    }

    /// Adds a table after an empty line; one without rows is left out.
    pub(crate) fn table<const N: usize>(&mut self, Table(rows): &Table<N>) {
        if rows.len() < 2 {
            return;
        }
        let mut widths = [0; N];
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        self.line("");
        for row in rows {
            let cells = row.iter().zip(widths);
            let cells: Vec<_> = cells
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            self.line(cells.join("  "));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example;

    #[test]
    fn screens() {
        for (name, status) in example::all() {
            insta::assert_snapshot!(format!("screen_{name}"), text(&status, example::NOW));
        }
    }

    #[test]
    fn what_is_well_fits_on_a_screen() {
        for status in [example::primary(), example::standby()] {
            let screen = text(&status, example::NOW);
            assert!(screen.lines().count() <= 34, "{screen}");
        }
    }

    #[test]
    fn a_message_cannot_steer_the_terminal() {
        let screen = text(&example::primary_with_a_faulty_service(), example::NOW);
        assert!(
            screen.chars().all(|c| c == '\n' || !c.is_control()),
            "{screen:?}"
        );
    }
}
