//! This machine, as `node.toml` describes it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::NodeName;

/// The name of the admin socket within `run_dir`.
pub(crate) const SOCKET_NAME: &str = "understudy.sock";

/// A valid `node.toml`: what is true of this machine only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Which of the cluster's nodes this machine is.
    pub name: NodeName,
    /// The directory under which the paths of `understudy.toml` are taken.
    pub root: PathBuf,
    /// Where understudy keeps its state. Not subject to `root`, nor are the other directories here.
    pub state_dir: PathBuf,
    /// Where the admin socket is.
    pub run_dir: PathBuf,
    /// Where the certificates and the key are.
    pub pki_dir: PathBuf,
    /// Where the monitor listens.
    pub monitor_listen: SocketAddr,
    /// Where the key-value store listens, if the cluster has one.
    pub kv_listen: SocketAddr,
    /// The network interface that the address of clients is taken on; `None` for the one of
    /// `understudy.toml`.
    pub address_interface: Option<String>,
}

impl Local {
    /// Where the key-value store listens where `node.toml` does not say.
    pub const KV_LISTEN_DEFAULT: SocketAddr =
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7479);

    /// Returns where an absolute path of `understudy.toml` is on this machine.
    pub fn resolve(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Returns the path of the admin socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join(SOCKET_NAME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(root: &str) -> Local {
        Local {
            name: "a".parse().unwrap(),
            root: root.into(),
            state_dir: "/var/lib/understudy".into(),
            run_dir: "/run/understudy".into(),
            pki_dir: "/etc/understudy/pki".into(),
            monitor_listen: "0.0.0.0:7480".parse().unwrap(),
            kv_listen: "127.0.0.1:7479".parse().unwrap(),
            address_interface: None,
        }
    }

    #[test]
    fn paths_are_taken_under_the_root() {
        let resolved = ["/", "/tmp/a"].map(|root| local(root).resolve(Path::new("/srv/uploads")));
        assert_eq!(
            resolved,
            [
                PathBuf::from("/srv/uploads"),
                PathBuf::from("/tmp/a/srv/uploads")
            ]
        );
    }

    #[test]
    fn the_socket_is_in_the_run_dir_whatever_the_root() {
        assert_eq!(
            local("/tmp/a").socket(),
            Path::new("/run/understudy/understudy.sock")
        );
    }
}
