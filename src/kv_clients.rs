//! Serves the key-value store to its clients.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use tokio::net::TcpListener;
use understudy_config::{Config, Local};
use understudy_replication::kv::server::{Password, Server, ServerOptions};
use understudy_replication::store::Stop;

use crate::failure::{Failure, Kind};
use crate::node::Node;

/// The longest password.
const PASSWORD_BYTES_MAX: u64 = 1024;

/// What is needed to serve clients, made before the node says that it runs.
pub(crate) struct Clients {
    listener: TcpListener,
    options: ServerOptions,
}

impl Clients {
    /// Listens for clients, if there is a key-value store.
    pub(crate) async fn listen(config: &Config, local: &Local) -> Result<Option<Self>, Failure> {
        let Some(kv) = &config.kv else {
            return Ok(None);
        };
        let path = kv.password_file.as_ref().map(|path| local.resolve(path));
        let password = path.as_deref().map(password).transpose()?;
        let what = "clients of the key-value store";
        let listener = crate::serve::bind(local.kv_listen, what).await?;
        let options = ServerOptions {
            password,
            ..ServerOptions::default()
        };
        Ok(Some(Self { listener, options }))
    }

    /// Serves them until told to stop, in whichever role the node is.
    pub(crate) async fn serve(self, node: Arc<Node>, stop: Stop) {
        let source = Arc::new(move || node.keyspace());
        Server::serve(self.listener, source, self.options, stop).await;
    }
}

/// Reads the password that clients have to tell. Nobody but the daemon's user may be able to read it.
fn password(path: &Path) -> Result<Password, Failure> {
    let refused = |what: String| {
        Failure::new(
            Kind::Usage,
            format!(
                "cannot take the password of the key-value store from {}: {what}",
                path.display()
            ),
        )
        .hint("write one line into it, and make it readable for its owner only: `chmod 600`")
    };
    let read = || -> std::io::Result<(u32, String)> {
        let file = File::open(path)?;
        let mode = file.metadata()?.permissions().mode();
        let mut text = String::new();
        file.take(PASSWORD_BYTES_MAX + 1)
            .read_to_string(&mut text)?;
        Ok((mode, text))
    };
    let (mode, text) = read().map_err(|error| refused(error.to_string()))?;
    if mode & 0o077 != 0 {
        return Err(refused(format!(
            "others may read it (mode {:03o})",
            mode & 0o777
        )));
    }
    let text = text.trim_end_matches(['\n', '\r']);
    if text.is_empty() || text.contains('\n') {
        return Err(refused("it does not hold one line".to_owned()));
    }
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > PASSWORD_BYTES_MAX {
        return Err(refused(format!(
            "it is longer than {PASSWORD_BYTES_MAX} bytes"
        )));
    }
    Ok(Password::new(text))
}
