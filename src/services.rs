//! `understudy services`, and what the daemon does for it.

use std::sync::Arc;

use hyper::Method;
use serde::{Deserialize, Serialize};
use understudy_config::{On, StoreName};
use understudy_primary::jobs::JobError;
use understudy_primary::services::OperatorError;
use understudy_replication::status::{
    Hold, JobOutcome, JobRun, JobStatus, ServiceStatus, Status, StoppedBy,
};
use understudy_replication::wall_time::WallTime;

use crate::Place;
use crate::failure::Failure;
use crate::node::Node;
use crate::output::{print, print_json};
use crate::serve::load_local;
use crate::who::who_runs_this;

/// The name of who has stopped something is no longer.
const WHO_CHARS_MAX: usize = 100;

/// Show, start and stop the services and jobs of this node
#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Services {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// Show how they are, in the order in which they are started
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Start a service, or let a job run on its schedule, whatever has held it back
    Start(Asked),
    /// Stop a service, or end a job, and keep it so until it is started
    Stop(Asked),
    /// Stop a service and start it again
    Restart(Asked),
    /// Have a service in fault started again, once what was wrong is mended
    Clear(Asked),
    /// Run a job now, and wait until it has ended
    Run(Asked),
}

/// Of which one something is asked.
#[derive(clap::Args, Debug)]
struct Asked {
    /// The service or job
    name: StoreName,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is asked of a service or a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Action {
    Start,
    Stop,
    Restart,
    Clear,
    Run,
}

/// What an operator asks of the daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    action: Action,
    name: StoreName,
    /// Who asks; an older verb does not tell.
    #[serde(default)]
    who: Option<String>,
}

/// What `understudy services start`, `stop`, `restart`, `clear` and `run` print as JSON.
#[derive(Serialize)]
struct Carried<'a> {
    action: Action,
    name: &'a StoreName,
    /// What became of it, in a sentence.
    message: String,
}

impl Order {
    fn by(&self) -> StoppedBy {
        // It is shown on screens.
        let who = self.who.as_deref().map(|who| {
            let line = who.chars().filter(|it| !it.is_control());
            line.take(WHO_CHARS_MAX).collect::<String>()
        });
        StoppedBy {
            who: who.filter(|who| !who.is_empty()),
            at: WallTime::now(),
        }
    }
}

/// An element of what `understudy services --json` prints.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Shown {
    Service(ServiceStatus),
    Job(JobStatus),
}

impl Services {
    pub(crate) async fn run(self, place: &Place) -> Result<(), Failure> {
        let socket = load_local(place)?.socket();
        let (action, asked) = match self.verb {
            None => return show(&socket, self.json).await,
            Some(Verb::List { json }) => return show(&socket, json).await,
            Some(Verb::Start(asked)) => (Action::Start, asked),
            Some(Verb::Stop(asked)) => (Action::Stop, asked),
            Some(Verb::Restart(asked)) => (Action::Restart, asked),
            Some(Verb::Clear(asked)) => (Action::Clear, asked),
            Some(Verb::Run(asked)) => (Action::Run, asked),
        };
        let order = Order {
            action,
            name: asked.name,
            who: Some(who_runs_this()),
        };
        let message: String = crate::admin::ask(&socket, Method::POST, "/services", &order).await?;
        if asked.json {
            return print_json(&Carried {
                action,
                name: &order.name,
                message,
            });
        }
        print(&message);
        Ok(())
    }
}

async fn show(socket: &std::path::Path, json: bool) -> Result<(), Failure> {
    let status: Status = crate::admin::ask(socket, Method::GET, "/status", &()).await?;
    if json {
        let services = status.services.into_iter().map(Shown::Service);
        let shown: Vec<Shown> = services
            .chain(status.jobs.into_iter().map(Shown::Job))
            .collect();
        return print_json(&shown);
    }
    if status.services.is_empty() && status.jobs.is_empty() {
        print("no services and no jobs are configured");
    }
    print(&table(
        status.services.iter().map(service_row).collect(),
        &SERVICE_HEAD,
    ));
    print(&table(status.jobs.iter().map(job_row).collect(), &JOB_HEAD));
    Ok(())
}

const SERVICE_HEAD: [&str; 8] = [
    "NAME",
    "TYPE",
    "ON",
    "STATE",
    "SINCE",
    "LAST PROBE",
    "RESTARTS",
    "LAST MESSAGE",
];

const JOB_HEAD: [&str; 8] = [
    "JOB",
    "SCHEDULE",
    "ON",
    "STATE",
    "SINCE",
    "NEXT",
    "LAST RUN",
    "LAST MESSAGE",
];

fn service_row(service: &ServiceStatus) -> [String; 8] {
    let kind = if service.is_critical {
        "critical"
    } else {
        "optional"
    };
    [
        service.name.to_string(),
        kind.to_owned(),
        service.on.as_str().to_owned(),
        service.state.as_str().to_owned(),
        service.since.to_string(),
        service
            .probed
            .map_or_else(|| "never".to_owned(), |at| at.to_string()),
        format!("{} of {}", service.restarts, service.restarts_max),
        service.message.clone(),
    ]
}

fn job_row(job: &JobStatus) -> [String; 8] {
    let held = match job.hold {
        Some(Hold::Failover) => format!(
            "held back since the promotion; `understudy services start {}` starts it",
            job.name
        ),
        Some(Hold::Operator) => format!(
            "stopped by an operator; `understudy services start {}` starts it",
            job.name
        ),
        None => String::new(),
    };
    let (last, message) = match &job.last {
        Some(run) => (
            format!("{} {}", run.outcome.as_str(), run.ended),
            run.message.clone(),
        ),
        None => ("never".to_owned(), String::new()),
    };
    [
        job.name.to_string(),
        job.schedule.clone(),
        job.on.as_str().to_owned(),
        job.state.as_str().to_owned(),
        job.since.to_string(),
        job.next.map_or_else(|| "-".to_owned(), |at| at.to_string()),
        last,
        if held.is_empty() { message } else { held },
    ]
}

/// Returns rows in columns; nothing for no rows.
fn table(rows: Vec<[String; 8]>, head: &[&str; 8]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let head = head.map(str::to_owned);
    let all: Vec<&[String; 8]> = std::iter::once(&head).chain(&rows).collect();
    let mut text = String::new();
    for row in &all {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = all
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count());
            let width = width.max().unwrap_or_default();
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Does what an operator asks, and returns what to tell of it.
pub(crate) async fn carry_out(node: &Arc<Node>, order: &Order) -> Result<String, Failure> {
    let name = &order.name;
    tracing::info!(?order, "an operator asks");
    if node.jobs.has(name) {
        return job(node, order)
            .await
            .map_err(|error| of_job(node, name, error));
    }
    let services = &node.services;
    let done = match order.action {
        Action::Start => services.start_one(name).await.map(|()| "is up"),
        Action::Stop => services
            .stop_one(name, order.by())
            .await
            .map(|()| "is down, and stays so until it is started"),
        Action::Restart => services
            .restart_one(name)
            .await
            .map(|()| "was restarted, and is up"),
        Action::Clear => services.clear(name).map(|()| "is looked at anew"),
        Action::Run if services.has(name) => {
            return Err(
                Failure::usage(format!("`{name}` is a service, and only jobs are run"))
                    .hint(format!("run `understudy services start {name}`")),
            );
        }
        Action::Run => Err(OperatorError::Unknown(name.clone())),
    };
    match done {
        Ok(done) => Ok(format!("service {name} {done}")),
        Err(error) => Err(of_service(node, name, &error)),
    }
}

async fn job(node: &Arc<Node>, order: &Order) -> Result<String, JobFailure> {
    let name = &order.name;
    match order.action {
        Action::Start => node.jobs.start(name)?,
        Action::Stop => {
            node.jobs.stop(name, order.by()).await?;
            return Ok(format!("job {name} does not run until it is started"));
        }
        Action::Run => {
            let run = node.jobs.run_now(name).await?;
            return match run.outcome {
                JobOutcome::Succeeded => Ok(ended(name, &run)),
                JobOutcome::Failed | JobOutcome::Ended => Err(JobFailure::Ran(ended(name, &run))),
            };
        }
        Action::Restart | Action::Clear => return Err(JobFailure::IsJob),
    }
    Ok(format!("job {name} runs on its schedule"))
}

fn ended(name: &StoreName, run: &JobRun) -> String {
    let colon = if run.message.is_empty() { "" } else { ": " };
    format!("job {name} {}{colon}{}", run.outcome.as_str(), run.message)
}

/// Why a job is not as an operator asks.
enum JobFailure {
    Refused(JobError),
    /// It has run, and failed.
    Ran(String),
    /// Only services are asked that.
    IsJob,
}

impl From<JobError> for JobFailure {
    fn from(error: JobError) -> Self {
        Self::Refused(error)
    }
}

fn of_job(node: &Node, name: &StoreName, failure: JobFailure) -> Failure {
    let error = match failure {
        JobFailure::Ran(told) => {
            return Failure::failed(told).hint("`understudy events` shows what it printed");
        }
        JobFailure::IsJob => {
            return Failure::usage(format!(
                "`{name}` is a job, which can be started, stopped and run"
            ));
        }
        JobFailure::Refused(error) => error,
    };
    let failure = Failure::of(&error);
    match error {
        JobError::NotHere { on, .. } => not_here(node, failure, on),
        JobError::Running { .. } => Failure::refused(failure.message).hint(format!(
            "end it first with `understudy services stop {name}`"
        )),
        JobError::Unknown(_) | JobError::State(_) | JobError::Stopping => failure,
    }
}

fn of_service(node: &Node, name: &StoreName, error: &OperatorError) -> Failure {
    let failure = Failure::of(error);
    match error {
        OperatorError::Unknown(_) => {
            let mut names: Vec<String> = Vec::new();
            names.extend(node.services.status().iter().map(|it| it.name.to_string()));
            names.extend(node.jobs.status().iter().map(|it| it.name.to_string()));
            Failure::usage(format!("there is no service or job `{name}`")).hint(
                if names.is_empty() {
                    "none is configured".to_owned()
                } else {
                    format!("there are {}", names.join(", "))
                },
            )
        }
        OperatorError::NotHere { on, .. } => not_here(node, failure, *on),
        OperatorError::State(_) => failure,
        OperatorError::Failed(_) => {
            failure.hint("`understudy events` shows what its commands printed")
        }
    }
}

/// Refuses what the role of this node does not allow, and says where it is allowed.
fn not_here(node: &Node, failure: Failure, on: On) -> Failure {
    let role = node.role();
    let told = format!(
        "{}, and node {} is {}",
        failure.message,
        node.me(),
        role.name().as_str()
    );
    let primary = role.primary(node.me()).filter(|name| name != node.me());
    let hint = match (on, primary) {
        (On::Primary | On::Both, Some(primary)) => format!("ask node {primary}, which is primary"),
        (On::Primary | On::Both, None) => "see `understudy status`".to_owned(),
        (On::Standby, _) => "ask a standby".to_owned(),
    };
    Failure::refused(told).hint(hint)
}
