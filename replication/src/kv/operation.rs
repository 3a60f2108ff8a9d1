//! What an entry of the log changes.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::wall_time::WallTime;

/// The longest key or field of a hash, in bytes.
pub const KV_KEY_BYTES_MAX: usize = 64 << 10;

/// The longest value of a string or of a field of a hash, in bytes: a file is the better place for more.
pub const KV_VALUE_BYTES_MAX: usize = 1 << 20;

/// The longest run of operations that is made together, in bytes as encoded: one entry has to hold it.
pub const KV_ATOM_BYTES_MAX: usize = 3 << 20;

/// One change of the table. Each is absolute: made twice, it leaves what it leaves made once.
///
/// What depends on the clock or on what was there before (`INCR`, expiry) is decided on the primary and comes
/// as what follows from it, so that both sides agree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Makes the key a string, whatever it was.
    Set {
        /// The key.
        key: Bytes,
        /// Its value.
        value: Bytes,
        /// When the primary will delete it; `None` for never.
        expires: Option<WallTime>,
    },
    /// Removes the key, whatever it is; nothing when it is absent.
    Delete {
        /// The key.
        key: Bytes,
    },
    /// Sets fields of a hash, which is made where the key is absent. It keeps its expiry.
    HashSet {
        /// The key.
        key: Bytes,
        /// The fields and their values, in this order.
        fields: Vec<(Bytes, Bytes)>,
    },
    /// Removes fields of a hash; the key goes with its last field.
    HashDelete {
        /// The key.
        key: Bytes,
        /// The fields.
        fields: Vec<Bytes>,
    },
    /// Sets when the primary will delete a key that is there.
    Expire {
        /// The key.
        key: Bytes,
        /// When; `None` for never.
        expires: Option<WallTime>,
    },
    /// Removes every key.
    Clear,
}
