//! The commands that run when the appliance goes online or offline on a node.

use understudy_replication::command::{Command, OsUser};
use understudy_replication::event::{Events, Severity};

use super::{ServicesError, digest, user};

/// The hooks of this node. Whatever becomes of them is an event, and never a failure.
pub struct Hooks {
    config: Option<understudy_config::Hooks>,
    user: Option<OsUser>,
    env: Vec<(String, String)>,
    events: Events,
}

impl Hooks {
    /// Returns the hooks; each gets `env`.
    ///
    /// # Errors
    /// When there is no such user.
    pub fn new(
        config: Option<&understudy_config::Hooks>,
        env: Vec<(String, String)>,
        events: Events,
    ) -> Result<Self, ServicesError> {
        let named = config.and_then(|config| config.user.as_deref());
        Ok(Self {
            config: config.cloned(),
            user: user("section", "hooks", named)?,
            env,
            events,
        })
    }

    /// Tells that the appliance is online on this node. Ends within the hook's timeout and a few seconds.
    pub async fn online(&self) {
        self.run("online", |config| config.online.as_ref()).await;
    }

    /// Tells that the appliance is about to go offline on this node. Ends within the hook's timeout and a few
    /// seconds.
    pub async fn offline(&self) {
        self.run("offline", |config| config.offline.as_ref()).await;
    }

    async fn run(
        &self,
        what: &str,
        command: impl FnOnce(&understudy_config::Hooks) -> Option<&Vec<String>>,
    ) {
        let Some((config, argv)) = self
            .config
            .as_ref()
            .and_then(|config| Some((config, command(config)?)))
        else {
            return;
        };
        let mut command = Command::new(argv.clone())
            .env("UNDERSTUDY_HOOK", what)
            .limit(config.timeout);
        for (name, value) in &self.env {
            command = command.env(name, value);
        }
        if let Some(user) = &self.user {
            command = command.user(user);
        }
        match command.run().await {
            Ok(output) => {
                let printed = digest(&output).map_or_else(String::new, |text| format!(": {text}"));
                let message = format!("the hook `{what}` has run{printed}");
                self.events.record(Severity::Info, "hook_done", message);
            }
            Err(error) => {
                let message = format!(
                    "the hook `{what}` failed, which changes nothing else: {}",
                    understudy_replication::error_chain(&error)
                );
                self.events
                    .record(Severity::Warning, "hook_failed", message);
            }
        }
    }
}
