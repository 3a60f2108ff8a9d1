//! `understudy invite`.

use hyper::Method;
use understudy_config::NodeName;

use crate::Place;
use crate::admin_api::{self, Invitation};
use crate::failure::Failure;
use crate::invites;
use crate::output::{print, print_json, tell};
use crate::serve::load_local;

/// Invite a node to join: print a token that is good once
#[derive(clap::Args, Debug)]
pub(crate) struct Invite {
    /// The name that the node will have
    node: NodeName,
    /// Let the token expire after so many minutes
    #[arg(long, default_value_t = invites::LIFETIME_MINUTES, value_name = "MINUTES", value_parser = clap::value_parser!(u64).range(1..=10080))]
    expires: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Invite {
    pub(crate) async fn run(self, place: &Place) -> Result<(), Failure> {
        let socket = load_local(place)?.socket();
        let asked = admin_api::Invite {
            node: self.node,
            lifetime_seconds: self.expires.saturating_mul(60),
        };
        let invitation: Invitation =
            crate::admin::ask(&socket, Method::POST, "/invite", &asked).await?;
        if self.json {
            return print_json(&invitation);
        }
        tell(&format!(
            "Run this on node {}, before {} (the token is good once):",
            invitation.node, invitation.expires
        ));
        print(&format!(
            "understudy join {} --token {}",
            invitation.url, invitation.token
        ));
        Ok(())
    }
}
