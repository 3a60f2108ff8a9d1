//! Jobs as they run.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use understudy_config::AfterFailover;
use understudy_replication::status::{JobOutcome, JobState, StoppedBy};

use super::*;

/// Whatever is waited for comes long before this, or not at all.
const PATIENCE: Duration = Duration::from_secs(30);

struct Place(tempfile::TempDir);

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn jobs(&self, configs: &[understudy_config::Job]) -> Arc<Jobs> {
        let env = [("UNDERSTUDY_NODE".to_owned(), "a".to_owned())];
        Arc::new(Jobs::new(configs, &env, self.events(), self.0.path()).unwrap())
    }

    fn events(&self) -> Events {
        Events::open(&self.path("events")).unwrap()
    }

    fn messages(&self, kind: &str) -> Vec<String> {
        let events = self.events().newest(1000).into_iter();
        let of_kind = events.filter(|event| event.kind == kind);
        of_kind.map(|event| event.message).collect()
    }
}

fn place() -> Place {
    Place(tempfile::tempdir().unwrap())
}

/// A job that would run in 2099 by itself.
fn job(name: &str, script: String) -> understudy_config::Job {
    understudy_config::Job {
        name: name.parse().unwrap(),
        schedule: "0 0 0 1 1 * 2099".parse().unwrap(),
        command: vec!["sh".to_owned(), "-c".to_owned(), script],
        user: None,
        timeout: Duration::from_secs(600),
        on: On::Primary,
        after_failover: AfterFailover::Start,
    }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, wait).await.is_err() {
        panic!("it never came to be that {what}");
    }
}

/// Runs the jobs of a primary while `work` does.
async fn running<T>(
    jobs: &Arc<Jobs>,
    work: impl AsyncFnOnce(watch::Sender<Option<Placement>>) -> T,
) -> T {
    let (stopper, stop) = Stopper::new();
    let place = watch::Sender::new(Some(Placement::Primary));
    let task = tokio::spawn(jobs.clone().run(place.subscribe(), stop));
    until("the jobs run", || jobs.place().is_some()).await;
    let value = work(place).await;
    stopper.stop();
    tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
    value
}

fn name(text: &str) -> StoreName {
    text.parse().unwrap()
}

fn runs(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn l15_a_job_runs_on_its_schedule_on_the_primary_and_not_on_a_standby() {
    let place = place();
    let mut every_second = job(
        "tick",
        format!("echo x >>{}", place.path("ticks").display()),
    );
    every_second.schedule = "* * * * * *".parse().unwrap();
    let mut elsewhere = job("report", format!("touch {}", place.path("wrong").display()));
    elsewhere.schedule = "* * * * * *".parse().unwrap();
    elsewhere.on = On::Standby;
    let jobs = place.jobs(&[every_second, elsewhere]);
    running(&jobs, async |_| {
        let ticks = || fs::read_to_string(place.path("ticks")).unwrap_or_default();
        until("it has run twice", || ticks().lines().count() >= 2).await;
        // The newest may be ended with the daemon, below.
        let outcome = || Some(jobs.status()[0].last.as_ref()?.outcome);
        until("it is told", || outcome() == Some(JobOutcome::Succeeded)).await;
    })
    .await;
    assert!(!place.path("wrong").exists());
    let status = jobs.status();
    let states = status.iter().map(|job| (job.state, job.next.is_some()));
    assert_eq!(
        states.collect::<Vec<_>>(),
        [(JobState::Waiting, true), (JobState::Elsewhere, false)]
    );
    assert_eq!(
        place.messages("job_done"),
        Vec::<String>::new(),
        "one that has nothing to say is no event"
    );
}

#[tokio::test]
async fn what_a_job_printed_and_how_it_ended_is_told_and_kept() {
    let place = place();
    let fine = job(
        "report",
        "echo $UNDERSTUDY_JOB of $UNDERSTUDY_NODE; echo 12 mails".to_owned(),
    );
    let broken = job(
        "purge",
        "echo half; echo 'no such table' >&2; exit 2".to_owned(),
    );
    let configs = [fine, broken];
    let jobs = place.jobs(&configs);
    running(&jobs, async |_| {
        let run = jobs.run_now(&name("report")).await.unwrap();
        assert_eq!(
            (run.outcome, run.message.as_str()),
            (JobOutcome::Succeeded, "12 mails")
        );
        let run = jobs.run_now(&name("purge")).await.unwrap();
        assert_eq!(
            (run.outcome, run.message.as_str()),
            (
                JobOutcome::Failed,
                "`sh` failed (exit status: 2): no such table"
            )
        );
    })
    .await;
    assert!(place.messages("job_done")[0].ends_with(": report of a | 12 mails"));
    assert!(place.messages("job_failed")[0].ends_with("; it printed: half | no such table"));
    let kept = place.jobs(&configs);
    assert_eq!(kept.status()[1].last, jobs.status()[1].last);
}

#[tokio::test]
async fn l15_a_fence_kills_a_running_job_with_its_children() {
    let place = place();
    let pids = place.path("pids");
    let script = format!(
        "trap '' TERM; sleep 1000 & echo $$ $! >{}; wait",
        pids.display()
    );
    let jobs = place.jobs(&[job("long", script)]);
    running(&jobs, async |role| {
        let task = jobs.clone();
        let task = tokio::spawn(async move { task.run_now(&name("long")).await });
        until("it runs", || {
            fs::read_to_string(&pids).is_ok_and(|text| text.ends_with('\n'))
        })
        .await;
        let again = jobs.run_now(&name("long")).await.unwrap_err();
        assert!(matches!(again, JobError::Running { .. }), "{again:?}");
        assert_eq!(jobs.status()[0].state, JobState::Running);
        role.send_replace(None);
        assert!(jobs.halt().await);
        let run = task.await.unwrap().unwrap();
        assert_eq!(run.outcome, JobOutcome::Ended);
        let text = fs::read_to_string(&pids).unwrap();
        for pid in text.split_whitespace() {
            until("it is killed", || !runs(pid)).await;
        }
    })
    .await;
    assert_eq!(
        place.messages("job_ended"),
        ["job long was ended: the role of this node does not allow it any more"]
    );
}

#[tokio::test]
async fn what_a_killed_daemon_left_running_is_ended_when_it_starts_again() {
    let place = place();
    let pids = place.path("pids");
    let config = [job(
        "long",
        format!("echo $$ >{}; sleep 1000", pids.display()),
    )];
    // As the daemon remembers it whose end nobody has seen.
    let mut child = std::process::Command::new("sleep");
    use std::os::unix::process::CommandExt;
    let mut child = child.arg("1000").process_group(0).spawn().unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    let jobs = place.jobs(&config);
    jobs.keep(|kept| {
        let process = Process::of(pid).unwrap();
        kept.running.insert(name("long"), process);
    });
    let jobs = place.jobs(&config);
    assert_eq!(*jobs.running.borrow(), 1, "a fence waits for it");
    running(&jobs, async |_| assert!(jobs.halt().await)).await;
    assert!(!child.wait().unwrap().success());
    assert_eq!(
        place.messages("job_ended"),
        ["job long still ran when the daemon started, and was ended"]
    );
    assert!(jobs.ledger.read(|kept| kept.running.is_empty()));
}

#[tokio::test]
async fn l15_what_is_held_or_stopped_does_not_run_until_an_operator_starts_it() {
    let place = place();
    let mut mails = job(
        "mails",
        format!("echo x >>{}", place.path("mails").display()),
    );
    mails.schedule = "* * * * * *".parse().unwrap();
    mails.after_failover = AfterFailover::Hold;
    let mut tick = job(
        "tick",
        format!("echo x >>{}", place.path("ticks").display()),
    );
    tick.schedule = "* * * * * *".parse().unwrap();
    let configs = [mails, tick];
    place.jobs(&configs).hold_after_failover();
    // The daemon was restarted since.
    let jobs = place.jobs(&configs);
    let count = |file: &str| {
        fs::read_to_string(place.path(file))
            .unwrap_or_default()
            .len()
            / 2
    };
    running(&jobs, async |_| {
        until("the other has run", || count("ticks") >= 2).await;
        assert_eq!(count("mails"), 0);
        let status = jobs.status();
        assert_eq!(
            (status[0].state, status[0].hold, status[0].next),
            (JobState::Held, Some(Hold::Failover), None)
        );
        jobs.start(&name("mails")).unwrap();
        until("it runs", || count("mails") >= 1).await;
        let by = StoppedBy {
            who: None,
            at: WallTime::now(),
        };
        jobs.stop(&name("tick"), by).await.unwrap();
        assert_eq!(jobs.status()[1].hold, Some(Hold::Operator));
        let (ticks, mails) = (count("ticks"), count("mails"));
        until("the other has run", || count("mails") >= mails + 2).await;
        assert_eq!(count("ticks"), ticks);
    })
    .await;
    let again = place.jobs(&configs);
    running(&again, async |role| {
        assert_eq!(again.status()[1].state, JobState::Held);
        role.send_replace(Some(Placement::Standby));
        until("it follows", || again.place() == Some(Placement::Standby)).await;
        let error = again.start(&name("tick")).unwrap_err();
        assert_eq!(error.to_string(), "job tick runs on the primary only");
    })
    .await;
    assert!(again.ledger.read(|kept| kept.holds == Holds::default()));
}

#[tokio::test]
async fn a_job_that_still_runs_when_it_is_due_is_not_run_twice_and_that_is_told_once() {
    let place = place();
    let begun = place.path("begun");
    let mut slow = job("slow", format!("echo x >>{}; sleep 1000", begun.display()));
    slow.schedule = "* * * * * *".parse().unwrap();
    let mut tick = job(
        "tick",
        format!("echo x >>{}", place.path("ticks").display()),
    );
    tick.schedule = "* * * * * *".parse().unwrap();
    let jobs = place.jobs(&[slow, tick]);
    let count = |file: &str| {
        fs::read_to_string(place.path(file))
            .unwrap_or_default()
            .len()
            / 2
    };
    running(&jobs, async |_| {
        until("the other has run", || count("ticks") >= 4).await;
    })
    .await;
    assert_eq!(count("begun"), 1);
    assert_eq!(place.messages("job_skipped").len(), 1);
}

#[tokio::test]
async fn a_job_that_takes_too_long_is_killed() {
    let place = place();
    let mut long = job("long", "echo working; sleep 1000".to_owned());
    long.timeout = Duration::from_millis(200);
    let jobs = place.jobs(&[long]);
    running(&jobs, async |_| {
        let run = jobs.run_now(&name("long")).await.unwrap();
        assert_eq!(run.outcome, JobOutcome::Failed);
        assert!(run.message.ends_with("and was killed: working"), "{run:?}");
    })
    .await;
}

#[test]
fn what_is_remembered_is_written_and_read_as_it_always_was() {
    let text = r#"{"held":["mail"],"stopped":["dump"],"last":{},"running":{"long":{"pid":7,"start_ticks":5,"boot":"b"}}}"#;
    let kept: Kept = serde_json::from_str(text).unwrap();
    assert_eq!(kept.holds.of(&name("dump")), Some(Hold::Operator));
    assert_eq!(serde_json::to_string(&kept).unwrap(), text);
}
