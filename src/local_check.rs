//! What the configuration names and this machine does not have: found while there is time to mend it, not in the
//! promotion that needs it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use understudy_config::{Config, Local};
use understudy_replication::command::OsUser;
use understudy_replication::error_chain;

/// Where the kernel lists the network interfaces.
const INTERFACES: &str = "/sys/class/net";

/// Returns what keeps the daemon from starting with this configuration: users that do not exist.
pub(crate) fn obstacles(config: &Config) -> Vec<String> {
    let services = config
        .services
        .iter()
        .map(|it| (format!("service {}", it.name), &it.user));
    let jobs = config
        .jobs
        .iter()
        .map(|it| (format!("job {}", it.name), &it.user));
    let hooks = config
        .hooks
        .iter()
        .map(|it| ("[hooks]".to_owned(), &it.user));
    let named = services.chain(jobs).chain(hooks);
    let unknown = named.filter_map(|(what, user)| {
        let error = OsUser::find(user.as_deref()?).err()?;
        Some(format!("{what} cannot run: {}", error_chain(&error)))
    });
    unknown.collect()
}

/// Returns what a promotion of this node would fail for, and the daemon does without until then.
pub(crate) fn lacks(config: &Config, local: &Local) -> Vec<String> {
    let mut lacks = Vec::new();
    if let Some(address) = &config.address {
        let interface = local
            .address_interface
            .as_ref()
            .unwrap_or(&address.interface);
        if !Path::new(INTERFACES).join(interface).exists() {
            lacks.push(format!(
                "[address] names the network interface `{interface}`, and this machine has none of that name: \
                 correct `interface` in understudy.toml, or set `address_interface` in node.toml"
            ));
        }
    }
    let mut look = |what: String, command: &[String]| {
        if let Some(program) = command.first()
            && !can_run(program)
        {
            lacks.push(format!(
                "{what} runs `{program}`, and there is no such program here: install it, or correct its path"
            ));
        }
    };
    if let Some(fence) = &config.fence {
        look("the command of [fence]".to_owned(), &fence.command);
    }
    for service in &config.services {
        let commands = [
            ("start", &service.start),
            ("stop", &service.stop),
            ("status", &service.status),
        ];
        for (verb, command) in commands {
            look(format!("`{verb}` of service {}", service.name), command);
        }
    }
    for job in &config.jobs {
        look(format!("job {}", job.name), &job.command);
    }
    lacks
}

/// Returns whether there is a command that could switch another node off, and its program is here.
pub(crate) fn can_fence(config: &Config) -> bool {
    let program = config.fence.iter().find_map(|fence| fence.command.first());
    program.is_some_and(|program| can_run(program))
}

/// Returns whether a program of that name or path can be run here by somebody.
fn can_run(program: &str) -> bool {
    let is_program = |path: &Path| {
        path.metadata()
            .is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        // Commands run in the root folder.
        return is_program(&Path::new("/").join(program));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&path).map(|folder| folder.join(program));
    folders.any(|path: PathBuf| is_program(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_by_its_name_and_by_its_path() {
        assert!(can_run("sh"));
        assert!(can_run("/bin/sh"));
        assert!(!can_run("/etc/passwd"));
        assert!(!can_run("/bin"));
        assert!(!can_run("no-such-program-anywhere"));
        assert!(!can_run("/no/such/program"));
    }
}
