//! `node.toml`, by itself and beside `understudy.toml`.

use std::path::{Path, PathBuf};

use super::{Checked, address, client_address, kv, name, paths};
use crate::local::SOCKET_NAME;
use crate::problem::{Findings, Mistake, Place, Placed};
use crate::{Local, NodeName, raw};

/// The longest path of a Unix socket that every system takes: `sun_path` without its NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Validates a `node.toml`, which goes with the `understudy.toml` that is `checked`.
pub(crate) fn local(
    file: &raw::NodeFile,
    default_pki_dir: &Path,
    checked: Option<&Checked>,
    findings: &mut Findings,
) -> Option<Local> {
    let name = file.name.as_ref().and_then(|it| {
        let name: NodeName = findings.check(it, name)?;
        is_a_node(&name, &it.place, checked, findings);
        Some(name)
    });
    let mut directory = |written: &Option<Placed<String>>| {
        written
            .as_ref()
            .map(|it| findings.check(it, paths::absolute))
    };
    let root = directory(&file.root);
    let state_dir = directory(&file.state_dir);
    let pki_dir = directory(&file.pki_dir);
    let run_dir = file
        .run_dir
        .as_ref()
        .and_then(|it| findings.check(it, run_dir));
    let monitor = file
        .monitor
        .as_ref()
        .and_then(|it| it.value.listen.as_ref());
    let monitor_listen = monitor.and_then(|it| findings.check(it, address));
    let kv = file.kv.as_ref().and_then(|it| it.value.listen.as_ref());
    let kv_listen = kv.and_then(|it| findings.check(it, address));
    if let Some(kv) = kv_listen.zip(kv) {
        kv::may_listen(kv, monitor_listen.zip(monitor), checked, findings);
    }
    let interface = file.address.as_ref();
    let interface = interface.and_then(|it| it.value.interface.as_ref());
    let interface = interface.map(|it| findings.check(it, client_address::interface));
    let local = Local {
        name: name?,
        root: root??,
        state_dir: state_dir??,
        run_dir: run_dir?,
        pki_dir: super::whole(pki_dir)?.unwrap_or_else(|| default_pki_dir.to_owned()),
        monitor_listen: monitor_listen?,
        kv_listen: kv_listen?,
        address_interface: super::whole(interface)?,
    };
    are_outside_of_stores(&local, file, checked, findings);
    Some(local)
}

fn is_a_node(name: &NodeName, place: &Place, checked: Option<&Checked>, findings: &mut Findings) {
    let Some(nodes) = checked.and_then(|checked| checked.nodes.as_ref()) else {
        return;
    };
    if nodes.iter().any(|node| node.value == *name) {
        return;
    }
    let known: Vec<String> = nodes
        .iter()
        .map(|node| format!("`{}`", node.value))
        .collect();
    let what = format!("no `[[node]]` of the cluster is named `{name}`");
    let expected = format!("the name of one: {}", known.join(", "));
    let problem = findings.report(place, what, expected);
    problem.suggesting(name.as_str(), nodes.iter().map(|node| node.value.as_str()));
    if let Some(first) = nodes.first() {
        problem.related(&first.place, "the nodes are named here");
    }
}

/// Reports the directories of understudy's own that a store would replicate or delete.
fn are_outside_of_stores(
    local: &Local,
    file: &raw::NodeFile,
    checked: Option<&Checked>,
    findings: &mut Findings,
) {
    let place = |written: &Option<Placed<String>>| match (written, &file.name) {
        (Some(written), _) | (None, Some(written)) => written.place.clone(),
        (None, None) => Place::new(1, 0..0),
    };
    let own = [
        ("state_dir", &local.state_dir, place(&file.state_dir)),
        ("run_dir", &local.run_dir, place(&file.run_dir)),
        ("pki_dir", &local.pki_dir, place(&file.pki_dir)),
    ];
    for store in checked.iter().flat_map(|checked| &checked.stores) {
        let path = local.resolve(&store.path);
        for (key, directory, place) in &own {
            if paths::overlap(&path, directory) {
                let what = format!(
                    "{key} `{}` overlaps with {}, which is `{}` on this machine",
                    directory.display(),
                    store.owner,
                    path.display()
                );
                findings
                    .report(
                        place,
                        what,
                        "a directory that no store lies in, nor it in a store",
                    )
                    .related(&store.place, format!("{} is here", store.owner));
            }
        }
    }
}

/// Reads `run_dir`, in which there is room for the name of the socket.
fn run_dir(text: &str) -> Result<PathBuf, Mistake> {
    let path = paths::absolute(text)?;
    let bytes = path.join(SOCKET_NAME).as_os_str().len();
    if bytes > SOCKET_PATH_BYTES_MAX {
        return Err(Mistake::new(
            format!(
                "the socket's path `{}` has {bytes} bytes",
                path.join(SOCKET_NAME).display()
            ),
            format!("a directory so short that the path has at most {SOCKET_PATH_BYTES_MAX}"),
        ));
    }
    Ok(path)
}
