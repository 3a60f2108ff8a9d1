//! Invitations: each is good for one node, once, until it expires.
//!
//! Only a hash of the secret is kept, so that the file gives nobody a way in.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_config::NodeName;
use understudy_replication::durable;
use understudy_replication::trust::Token;
use understudy_replication::wall_time::WallTime;

/// How long an invitation is good, unless the operator says otherwise.
pub(crate) const LIFETIME_MINUTES: u64 = 60;

/// How many invitations are kept; the oldest used or expired ones are forgotten first.
const INVITES_MAX: usize = 64;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Invite {
    node: NodeName,
    secret_hash: String,
    expires: WallTime,
    is_used: bool,
}

/// Why a token is not accepted. The text goes to the caller and into an event; it tells no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Rejection {
    #[error("the token is not one of this cluster's, or is older than the last {INVITES_MAX}")]
    Unknown,
    #[error("the token was used already; make a new one with `understudy invite {0}`")]
    Used(NodeName),
    #[error("the token has expired; make a new one with `understudy invite {0}`")]
    Expired(NodeName),
    #[error("the token is for node {invited}, not for {asked}")]
    OtherNode { invited: NodeName, asked: NodeName },
}

/// The invitations of this node.
pub(crate) struct Invites {
    path: PathBuf,
}

impl Invites {
    pub(crate) fn of(state_dir: &Path) -> Self {
        Self {
            path: state_dir.join("invites.json"),
        }
    }

    fn load(&self) -> io::Result<Vec<Invite>> {
        match fs::read(&self.path) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn store(&self, invites: &[Invite]) -> io::Result<()> {
        durable::write(&self.path, &serde_json::to_vec_pretty(invites)?, 0o600)
    }

    /// Remembers that `token` invites `node`.
    pub(crate) fn add(
        &self,
        node: &NodeName,
        token: &Token,
        now: WallTime,
        lifetime: Duration,
    ) -> io::Result<()> {
        let mut invites = self.load()?;
        // The new invitation to a node replaces the ones before.
        invites.retain(|invite| invite.node != *node || invite.is_used);
        let excess = (invites.len() + 1).saturating_sub(INVITES_MAX);
        invites.drain(..excess);
        let lifetime = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
        invites.push(Invite {
            node: node.clone(),
            secret_hash: hash(&token.secret),
            expires: WallTime(now.0.saturating_add(lifetime)),
            is_used: false,
        });
        self.store(&invites)
    }

    /// Uses up the invitation of `node` with `secret`. It is durably used before this returns, so a
    /// crash costs an invitation and never gives one twice.
    pub(crate) fn redeem(
        &self,
        node: &NodeName,
        secret: &[u8],
        now: WallTime,
    ) -> io::Result<Result<(), Rejection>> {
        self.examine(node, secret, now, true)
    }

    /// Returns whether `node` may join with `secret`, and leaves the invitation as it is.
    pub(crate) fn check(
        &self,
        node: &NodeName,
        secret: &[u8],
        now: WallTime,
    ) -> io::Result<Result<(), Rejection>> {
        self.examine(node, secret, now, false)
    }

    fn examine(
        &self,
        node: &NodeName,
        secret: &[u8],
        now: WallTime,
        is_used_up: bool,
    ) -> io::Result<Result<(), Rejection>> {
        let mut invites = self.load()?;
        let secret = blake3::hash(secret);
        // Comparing hashes of `blake3` takes the same time whatever differs.
        let found = invites.iter_mut().find(|invite| {
            blake3::Hash::from_hex(&invite.secret_hash).is_ok_and(|known| known == secret)
        });
        let Some(invite) = found else {
            return Ok(Err(Rejection::Unknown));
        };
        if invite.node != *node {
            return Ok(Err(Rejection::OtherNode {
                invited: invite.node.clone(),
                asked: node.clone(),
            }));
        }
        if invite.is_used {
            return Ok(Err(Rejection::Used(node.clone())));
        }
        if invite.expires <= now {
            return Ok(Err(Rejection::Expired(node.clone())));
        }
        if is_used_up {
            invite.is_used = true;
            self.store(&invites)?;
        }
        Ok(Ok(()))
    }
}

fn hash(secret: &[u8]) -> String {
    blake3::hash(secret).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(authority: &understudy_replication::trust::Authority, secret: u8) -> Token {
        Token {
            issuer: "a".parse().unwrap(),
            node: "b".parse().unwrap(),
            fingerprint: authority.fingerprint().unwrap(),
            secret: [secret; 32],
        }
    }

    #[test]
    fn an_invitation_is_good_for_its_node_once_until_it_expires() {
        let folder = tempfile::tempdir().unwrap();
        let authority = understudy_replication::trust::Authority::create("catalog").unwrap();
        let invites = Invites::of(folder.path());
        let (b, c): (NodeName, NodeName) = ("b".parse().unwrap(), "c".parse().unwrap());
        let minute = Duration::from_secs(60);
        invites
            .add(&b, &token(&authority, 1), WallTime(0), minute)
            .unwrap();
        let redeem = |node: &NodeName, secret: u8, at: u64| {
            invites.redeem(node, &[secret; 32], WallTime(at)).unwrap()
        };
        assert_eq!(redeem(&b, 2, 0), Err(Rejection::Unknown));
        assert_eq!(
            redeem(&c, 1, 0),
            Err(Rejection::OtherNode {
                invited: b.clone(),
                asked: c.clone()
            })
        );
        assert_eq!(redeem(&b, 1, 60_000), Err(Rejection::Expired(b.clone())));
        assert_eq!(redeem(&b, 1, 59_999), Ok(()));
        assert_eq!(redeem(&b, 1, 59_999), Err(Rejection::Used(b.clone())));
        invites
            .add(&b, &token(&authority, 3), WallTime(0), minute)
            .unwrap();
        assert_eq!(redeem(&b, 3, 1), Ok(()));
    }

    #[test]
    fn the_file_of_invitations_holds_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        let authority = understudy_replication::trust::Authority::create("catalog").unwrap();
        let invites = Invites::of(folder.path());
        let token = token(&authority, 7);
        invites
            .add(
                &"b".parse().unwrap(),
                &token,
                WallTime(0),
                Duration::from_secs(60),
            )
            .unwrap();
        let text = fs::read_to_string(folder.path().join("invites.json")).unwrap();
        assert!(!text.contains(&"07".repeat(32)));
        assert!(!text.contains(token.to_string().rsplit('.').next().unwrap()));
    }
}
