//! The two nodes of the demo: folders, addresses, processes.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use hyper::Method;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::{Child, Command};
use understudy_replication::command::OsUser;
use understudy_replication::status::{IndexState, IndexStatus, RoleName, Status, StoreLag};
use understudy_replication::wall_time::WallTime;

use crate::failure::Failure;
use crate::output::tell;

/// A node may take this long to be what it should be.
const READY_PATIENCE: Duration = Duration::from_secs(60);

/// The two nodes.
pub(super) struct Machines {
    folder: PathBuf,
    program: PathBuf,
    pub(super) user: OsUser,
    pub(super) postgres_port: u16,
    a: Machine,
    b: Machine,
    is_kept: bool,
}

struct Machine {
    peers: SocketAddr,
    monitor: SocketAddr,
    kv: SocketAddr,
    serving: Option<Child>,
}

impl Machines {
    /// Makes the folders, and finds addresses and ports that are free.
    pub(super) fn new() -> Result<Self, Failure> {
        // Postgres refuses to run as root; an ordinary user runs it as itself.
        let user = OsUser::find("postgres")?;
        let folder = tempfile::Builder::new()
            .prefix(FOLDER_PREFIX)
            .tempdir()?
            .keep();
        // The OS user of Postgres has to reach its data.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        // Two loopback addresses, so that both nodes can use one port, as two machines do.
        let third = 1 + std::process::id() % 250;
        let (ip_a, ip_b) = (format!("127.9.{third}.1"), format!("127.9.{third}.2"));
        let machine = |ip: &str| {
            Ok::<_, Failure>(Machine {
                peers: free_address(&[ip])?,
                monitor: free_address(&[ip])?,
                kv: free_address(&[ip])?,
                serving: None,
            })
        };
        Ok(Self {
            program: std::env::current_exe()?,
            user,
            postgres_port: free_address(&[&ip_a, &ip_b])?.port(),
            a: machine(&ip_a)?,
            b: machine(&ip_b)?,
            folder,
            is_kept: false,
        })
    }

    fn machine(&self, name: &str) -> &Machine {
        if name == "a" { &self.a } else { &self.b }
    }

    fn home(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Returns where the node's file system begins.
    pub(super) fn root(&self, name: &str) -> PathBuf {
        self.home(name).join("root")
    }

    pub(super) fn configuration_folder(&self, name: &str) -> PathBuf {
        self.home(name).join("etc")
    }

    pub(super) fn socket_dir(&self, name: &str) -> PathBuf {
        self.root(name).join("run/postgresql")
    }

    pub(super) fn monitor(&self, name: &str) -> SocketAddr {
        self.machine(name).monitor
    }

    /// Returns where clients reach the node's key-value store.
    pub(super) fn kv(&self, name: &str) -> SocketAddr {
        self.machine(name).kv
    }

    fn local_arguments(&self, name: &str) -> Vec<String> {
        let home = self.home(name);
        let path = |part: &str| home.join(part).display().to_string();
        [
            ("--root", path("root")),
            ("--state-dir", path("state")),
            ("--run-dir", path("run")),
            ("--monitor", self.machine(name).monitor.to_string()),
            ("--kv-listen", self.machine(name).kv.to_string()),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
    }

    /// Makes node a, with `configuration` for what is to be replicated.
    pub(super) async fn init(&self, configuration: &str) -> Result<(), Failure> {
        let address = self.a.peers.to_string();
        let mut arguments: Vec<String> = [
            "init",
            "--name",
            "a",
            "--cluster",
            "catalog",
            "--address",
            &address,
        ]
        .map(str::to_owned)
        .to_vec();
        arguments.extend(self.local_arguments("a"));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.understudy("a", &arguments).await?;
        // As an operator would: name the stores in the file that `init` has made.
        let file = self.configuration_folder("a").join("understudy.toml");
        let text = format!("{}\n{configuration}", fs::read_to_string(&file)?);
        fs::write(&file, text)?;
        self.understudy("a", &["config", "check"]).await?;
        Ok(())
    }

    /// Invites node b, and joins it; the progress is shown.
    pub(super) async fn join(&self) -> Result<(), Failure> {
        let invitation = self.understudy("a", &["invite", "b", "--json"]).await?;
        let invitation: crate::admin_api::Invitation = serde_json::from_str(&invitation)?;
        let address = self.b.peers.to_string();
        let mut arguments: Vec<String> = ["join", &invitation.url, "--address", &address]
            .map(str::to_owned)
            .to_vec();
        arguments.extend(self.local_arguments("b"));
        let status = self
            .command("b")
            .args(&arguments)
            // Not on the command line, where every user of the machine could read it.
            .env("UNDERSTUDY_TOKEN", &invitation.token)
            .stdout(Stdio::null())
            .status()
            .await?;
        if !status.success() {
            return Err(Failure::failed(format!(
                "`understudy join` failed ({status})"
            )));
        }
        Ok(())
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--config")
            .arg(self.configuration_folder(name))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs a verb on a node, and returns what it printed; its diagnostics are shown.
    pub(super) async fn understudy(
        &self,
        name: &str,
        arguments: &[&str],
    ) -> Result<String, Failure> {
        let output = self
            .command(name)
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()?
            .wait_with_output()
            .await?;
        if !output.status.success() {
            return Err(Failure::failed(format!(
                "`understudy {}` failed on node {name} ({})",
                arguments.join(" "),
                output.status
            )));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts the daemon of a node that was killed, and waits until it has fenced itself.
    pub(super) async fn revive(&mut self, name: &str) -> Result<(), Failure> {
        self.start(name)?;
        self.wait_until(name, |status| status.role == RoleName::Fenced)
            .await
    }

    /// Starts the daemon of a node, and waits until it does what its role says.
    pub(super) async fn serve(&mut self, name: &str) -> Result<(), Failure> {
        self.start(name)?;
        self.wait_until(name, is_ready).await
    }

    fn start(&mut self, name: &str) -> Result<(), Failure> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log(name))?;
        let mut command = self.command(name);
        command
            .arg("serve")
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0);
        let child = command.spawn()?;
        let machine = if name == "a" {
            &mut self.a
        } else {
            &mut self.b
        };
        machine.serving = Some(child);
        Ok(())
    }

    async fn wait_until(&self, name: &str, is_so: impl Fn(&Status) -> bool) -> Result<(), Failure> {
        let ready = async {
            loop {
                if let Ok(status) = self.status(name).await
                    && is_so(&status)
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(READY_PATIENCE, ready)
            .await
            .map_err(|_| {
                Failure::failed(format!(
                    "node {name} was not ready within {} s",
                    READY_PATIENCE.as_secs()
                ))
            })
    }

    /// Waits until a node's indexes follow their rows.
    pub(super) async fn wait_for_indexes(&self, name: &str) -> Result<(), Failure> {
        self.wait_until(name, has_warm_indexes).await
    }

    fn log(&self, name: &str) -> PathBuf {
        self.home(name).join("serve.log")
    }

    /// Returns a node's status.
    pub(super) async fn status(&self, name: &str) -> Result<Status, Failure> {
        let socket = self.home(name).join("run/understudy.sock");
        crate::admin::ask(&socket, Method::GET, "/status", &()).await
    }

    /// Returns a line that tells the standby's lag, as the primary sees it.
    pub(super) async fn lag_line(&self, name: &str) -> Result<String, Failure> {
        let status = self.status(name).await?;
        let Some(standby) = status.standbys.first() else {
            return Ok("   no standby".to_owned());
        };
        let stores: Vec<String> = standby.stores.iter().map(lag_text).collect();
        Ok(format!("   {}", stores.join("   ")))
    }

    /// Returns the newest moment up to which a standby has everything.
    pub(super) async fn cut(&self, name: &str) -> Result<Option<WallTime>, Failure> {
        Ok(self
            .status(name)
            .await?
            .upstream
            .and_then(|upstream| upstream.cut))
    }

    /// Kills every process of a node at once, as a power cut would end them.
    pub(super) fn kill(&mut self, name: &str) -> Result<(), Failure> {
        let pids = processes(&self.home(name));
        let machine = if name == "a" {
            &mut self.a
        } else {
            &mut self.b
        };
        if let Some(child) = &mut machine.serving
            && let Some(group) = child
                .id()
                .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?))
        {
            kill_process_group(group, Signal::KILL)?;
        }
        for pid in pids {
            // Some have ended with their parents.
            let _ended = kill_process(pid, Signal::KILL).is_err();
        }
        Ok(())
    }

    /// Leaves everything running, and says how to explore it.
    pub(super) fn keep(&mut self) {
        self.is_kept = true;
        for machine in [&mut self.a, &mut self.b] {
            // Without its handle the daemon is not killed with this process.
            if let Some(child) = machine.serving.take() {
                std::mem::forget(child);
            }
        }
        let program = self.program.display();
        let folder = self.folder.display();
        tell(&format!(
            "\nThe pair is kept in {folder}. Try:\n  \
             {program} --config {folder}/b/etc status --watch\n  \
             {program} --config {folder}/b/etc index search search 'text editor'\n  \
             {program} --config {folder}/a/etc status\n  \
             curl http://{}/monitor/replication\n  \
             psql -h {} -p {} -U {} catalog\n\
             End it with: {program} demo --end {folder}",
            self.b.monitor,
            self.socket_dir("b").display(),
            self.postgres_port,
            self.user.name,
        ));
    }

    /// Shows the end of the daemons' logs, after a failure.
    pub(super) fn tell_logs(&self) {
        for name in ["a", "b"] {
            let log = fs::read_to_string(self.log(name)).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines
                .get(lines.len().saturating_sub(15)..)
                .unwrap_or_default();
            tell(&format!(
                "--- the end of node {name}'s log\n{}",
                end.join("\n")
            ));
        }
    }

    /// Ends everything, and removes the folder.
    pub(super) async fn end(&mut self) {
        for name in ["a", "b"] {
            if let Err(failure) = self.kill(name) {
                tell(&failure.to_string());
            }
            let machine = if name == "a" {
                &mut self.a
            } else {
                &mut self.b
            };
            if let Some(mut child) = machine.serving.take() {
                // Reaps it; it has been killed.
                let _status = child.wait().await;
            }
        }
        remove(&self.folder);
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        if !self.is_kept && self.folder.exists() {
            for name in ["a", "b"] {
                let _told = self.kill(name).is_err();
            }
            remove(&self.folder);
        }
    }
}

/// The beginning of the name of a demo's folder.
const FOLDER_PREFIX: &str = "understudy-demo-";

/// Ends the pair that an earlier demo has left in `folder`.
pub(super) fn end_kept(folder: &Path) -> Result<(), Failure> {
    let is_ours = folder.file_name().and_then(|name| name.to_str());
    if !is_ours.is_some_and(|name| name.starts_with(FOLDER_PREFIX)) || !folder.is_dir() {
        return Err(Failure::usage(format!(
            "{} is not the folder of a demo",
            folder.display()
        )));
    }
    for pid in processes(folder) {
        // Some have ended with their parents.
        let _ended = kill_process(pid, Signal::KILL).is_err();
    }
    remove(folder);
    Ok(())
}

/// Returns the processes that belong to a folder of the demo: daemons, servers of Postgres with their
/// children, and what services have left behind.
fn processes(folder: &Path) -> Vec<Pid> {
    let home = format!("{}/", folder.display());
    let mut found = Vec::new();
    let mut parents = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let stat = fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        let parent = stat
            .rsplit(')')
            .next()
            .and_then(|rest| rest.split_whitespace().nth(1)?.parse::<i32>().ok());
        let is_theirs = String::from_utf8_lossy(&command).contains(&home);
        if is_theirs && pid.unsigned_abs() != std::process::id() {
            found.push(pid);
        }
        if let Some(parent) = parent {
            parents.push((pid, parent));
        }
    }
    // The servers' children do not name the folder.
    let children: Vec<i32> = parents
        .into_iter()
        .filter(|(pid, parent)| found.contains(parent) && !found.contains(pid))
        .map(|(pid, _)| pid)
        .collect();
    found
        .into_iter()
        .chain(children)
        .filter_map(Pid::from_raw)
        .collect()
}

fn remove(folder: &Path) {
    // A process that is still dying may write its last file.
    for _ in 0..50 {
        if fs::remove_dir_all(folder).is_ok() || !folder.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    tell(&format!("cannot remove {}", folder.display()));
}

/// Returns whether a node does what its role says.
fn is_ready(status: &Status) -> bool {
    match status.role {
        RoleName::Primary => {
            let told =
                |store: &understudy_replication::status::StoreStatus| store.position.is_some();
            !status.stores.is_empty() && status.stores.iter().all(told)
        }
        RoleName::Standby => status
            .upstream
            .as_ref()
            .is_some_and(|upstream| upstream.is_connected),
        RoleName::Returning | RoleName::Promoting | RoleName::Fenced => false,
    }
}

/// Returns whether every index of a node can be searched and follows its rows.
pub(super) fn has_warm_indexes(status: &Status) -> bool {
    let is_warm = |index: &IndexStatus| index.is_warm && index.state == IndexState::Ready;
    !status.indexes.is_empty() && status.indexes.iter().all(is_warm)
}

fn lag_text(store: &StoreLag) -> String {
    match (store.lag, store.lag_seconds) {
        (Some(lag), Some(seconds)) => {
            format!("{}: {lag} {} ({seconds:.1} s)", store.id.name, store.unit)
        }
        (Some(lag), None) => format!("{}: {lag} {}", store.id.name, store.unit),
        (None, _) => format!("{}: unknown", store.id.name),
    }
}

/// Returns a port that is free on all of `ips`.
fn free_address(ips: &[&str]) -> Result<SocketAddr, Failure> {
    let (Some(first), Some(last)) = (ips.first(), ips.last()) else {
        return Err(Failure::failed("no address"));
    };
    for _ in 0..100 {
        let address = TcpListener::bind(format!("{first}:0"))?.local_addr()?;
        if TcpListener::bind((*last, address.port())).is_ok() {
            return Ok(address);
        }
    }
    Err(Failure::failed("no port is free"))
}
