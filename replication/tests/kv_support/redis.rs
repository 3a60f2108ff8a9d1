//! Redis' own server.

use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::PATIENCE;

/// Redis' own server, in a directory of its own.
pub(crate) struct Redis {
    child: Child,
    pub(crate) address: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Redis {
    pub(crate) fn start() -> Self {
        let deadline = Instant::now() + PATIENCE;
        // Somebody else may take the free port in between.
        loop {
            if let Some(redis) = Self::try_start(deadline) {
                return redis;
            }
            assert!(Instant::now() < deadline, "redis-server has not come up");
        }
    }

    fn try_start(deadline: Instant) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let port = port.to_string();
        let mut redis = Self {
            child: Command::new("redis-server")
                .args([
                    "--bind",
                    "127.0.0.1",
                    "--save",
                    "",
                    "--appendonly",
                    "no",
                    "--port",
                    &port,
                ])
                .arg("--dir")
                .arg(directory.path())
                .stdout(Stdio::null())
                .spawn()
                .expect("redis-server is needed; `scripts/setup --test` installs it"),
            address,
            _directory: directory,
        };
        while Instant::now() < deadline {
            let is_taken = TcpStream::connect(address).is_ok();
            if redis.child.try_wait().unwrap().is_some() {
                return None;
            }
            if is_taken {
                return Some(redis);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _killed = self.child.kill().is_ok();
        let _status = self.child.wait();
    }
}
