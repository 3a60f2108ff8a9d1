//! Changes of the newest state, as operations.

use std::collections::HashSet;

use bytes::Bytes;

use super::{Space, SpaceError};
use crate::kv::operation::{KV_ATOM_BYTES_MAX, KV_KEY_BYTES_MAX, KV_VALUE_BYTES_MAX, Operation};
use crate::wall_time::WallTime;

/// What operations have beside keys, fields and values for one command of one key, in bytes at most.
pub(in crate::kv) const COMMAND_BYTES: usize = 64;

impl Space<'_> {
    /// Makes the key a string, whatever it was.
    ///
    /// # Errors
    /// When it is too large, or there is no memory for it.
    pub fn set(
        &mut self,
        key: &[u8],
        value: &[u8],
        expires: Option<WallTime>,
    ) -> Result<(), SpaceError> {
        self.bound_memory(0)?;
        bound_key(key)?;
        bound_value(value)?;
        self.make_room(key, value.len())?;
        let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
        self.touch(&key);
        self.push(Operation::Set {
            key,
            value,
            expires,
        });
        Ok(())
    }

    /// Checks that all these can be [set](Space::set) together.
    ///
    /// # Errors
    /// When they are too large, or there is no memory for them.
    pub fn check_sets<'p>(
        &self,
        pairs: impl Iterator<Item = (&'p [u8], &'p [u8])>,
    ) -> Result<(), SpaceError> {
        self.bound_memory(0)?;
        let mut bytes = 0usize;
        for (key, value) in pairs {
            bound_key(key)?;
            bound_value(value)?;
            bytes = bytes.saturating_add(3 * key.len() + value.len() + COMMAND_BYTES);
        }
        self.make_room(&[], bytes)
    }

    /// Checks that all these can be [deleted](Space::delete) together.
    ///
    /// # Errors
    /// When their keys are too large.
    pub fn check_deletes<'p>(
        &self,
        keys: impl Iterator<Item = &'p [u8]>,
    ) -> Result<(), SpaceError> {
        let there = keys.filter(|key| self.any_view(key).is_some());
        let bytes = there.map(|key| 3 * key.len() + COMMAND_BYTES).sum();
        self.make_room(&[], bytes)
    }

    /// Removes the key, and returns whether it was there.
    ///
    /// # Errors
    /// When all that is made together would be too large.
    pub fn delete(&mut self, key: &[u8]) -> Result<bool, SpaceError> {
        if self.any_view(key).is_none() {
            return Ok(false);
        }
        self.make_room(key, 0)?;
        if self.purge(key)? {
            return Ok(false);
        }
        let key = Bytes::copy_from_slice(key);
        self.touch(&key);
        self.push(Operation::Delete { key });
        Ok(true)
    }

    /// Removes the key if it has expired, and returns whether it had.
    ///
    /// # Errors
    /// When only what is visible can be seen here.
    pub fn purge(&mut self, key: &[u8]) -> Result<bool, SpaceError> {
        if !self.is_expired(key) {
            return Ok(false);
        }
        let draft = self.draft.as_mut().ok_or(SpaceError::ReadOnly)?;
        draft.touch_watches_of_expired(key);
        let key = Bytes::copy_from_slice(key);
        self.push(Operation::Delete { key });
        Ok(true)
    }

    /// Sets fields of a hash, which is made if need be, and returns how many of them are new.
    ///
    /// # Errors
    /// When the key is no hash, something is too large, or there is no memory for it.
    pub fn hash_set(&mut self, key: &[u8], fields: &[(&[u8], &[u8])]) -> Result<usize, SpaceError> {
        if !fields.is_empty() {
            self.bound_memory(0)?;
        }
        let hash = self.hash(key)?;
        let expires = self.expires(key).flatten();
        bound_key(key)?;
        let mut bytes = 0;
        for (field, value) in fields {
            bound_key(field)?;
            bound_value(value)?;
            bytes += field.len() + value.len() + COMMAND_BYTES;
        }
        let is_new = |field: &[u8]| hash.is_none_or(|hash| hash.get(field).is_none());
        let added = match fields {
            [] => return Ok(0),
            [(field, _)] => usize::from(is_new(field)),
            fields => {
                let mut new: HashSet<_> = fields.iter().map(|(field, _)| *field).collect();
                new.retain(|field| is_new(field));
                new.len()
            }
        };
        self.make_room(key, bytes)?;
        self.purge(key)?;
        let key = Bytes::copy_from_slice(key);
        let copied = |(field, value): &(&[u8], &[u8])| {
            (Bytes::copy_from_slice(field), Bytes::copy_from_slice(value))
        };
        let fields = fields.iter().map(copied).collect();
        self.touch(&key);
        self.push(Operation::HashSet {
            key: key.clone(),
            fields,
        });
        // Said again so that it is right however much of the hash is there when this is made a second time
        // (see `Table::walk`).
        if expires.is_some() {
            self.push(Operation::Expire { key, expires });
        }
        Ok(added)
    }

    /// Checks that a hash can be given all these fields, one after another. They need not fit together.
    ///
    /// # Errors
    /// When the key or one of them is too large, or there is no memory for all.
    pub fn check_fields<'p>(
        &self,
        key: &[u8],
        fields: impl Iterator<Item = (&'p [u8], &'p [u8])>,
    ) -> Result<(), SpaceError> {
        bound_key(key)?;
        let mut bytes = 0_usize;
        for (field, value) in fields {
            bound_key(field)?;
            bound_value(value)?;
            bytes = bytes.saturating_add(field.len() + value.len() + COMMAND_BYTES);
        }
        if bytes > 0 {
            self.bound_memory(bytes)?;
        }
        Ok(())
    }

    /// Removes fields of a hash, and returns how many of them were there. The key goes with its last field.
    ///
    /// # Errors
    /// When the key is no hash, or all that is made together would be too large.
    pub fn hash_delete(&mut self, key: &[u8], fields: &[&[u8]]) -> Result<usize, SpaceError> {
        let Some(hash) = self.hash(key)? else {
            return Ok(0);
        };
        let mut gone: HashSet<&[u8]> = fields.iter().copied().collect();
        gone.retain(|field| hash.get(field).is_some());
        let (count, is_all) = (gone.len(), gone.len() == hash.field_count());
        if count == 0 {
            return Ok(0);
        }
        let bytes = gone.iter().map(|field| field.len() + COMMAND_BYTES).sum();
        self.make_room(key, bytes)?;
        let key = Bytes::copy_from_slice(key);
        self.touch(&key);
        self.push(if is_all {
            Operation::Delete { key }
        } else {
            let mut fields = fields.to_vec();
            fields.retain(|field| gone.remove(field));
            let fields = fields.into_iter().map(Bytes::copy_from_slice).collect();
            Operation::HashDelete { key, fields }
        });
        Ok(count)
    }

    /// Sets when the key expires, `None` for never, and returns whether it is there.
    ///
    /// # Errors
    /// When all that is made together would be too large.
    pub fn expire(&mut self, key: &[u8], expires: Option<WallTime>) -> Result<bool, SpaceError> {
        if self.any_view(key).is_none() {
            return Ok(false);
        }
        self.make_room(key, 0)?;
        if self.purge(key)? {
            return Ok(false);
        }
        let key = Bytes::copy_from_slice(key);
        self.touch(&key);
        self.push(Operation::Expire { key, expires });
        Ok(true)
    }

    /// Removes every key.
    ///
    /// # Errors
    /// When only what is visible can be seen here.
    pub fn clear(&mut self) -> Result<(), SpaceError> {
        let draft = self.draft.as_mut().ok_or(SpaceError::ReadOnly)?;
        draft.touch_all_watches();
        self.push(Operation::Clear);
        Ok(())
    }

    /// Says that what was changed since the last call is to be made together, and is complete.
    pub fn end_atom(&mut self) {
        if let Some(draft) = &mut self.draft {
            draft.end_atom();
        }
    }

    /// Checks that what a command may do to a key still fits: it may delete it, set it, and set its expiry.
    fn make_room(&self, key: &[u8], bytes: usize) -> Result<(), SpaceError> {
        let draft = self.draft.as_ref().ok_or(SpaceError::ReadOnly)?;
        let wanted = draft.open_bytes() + 3 * key.len() + COMMAND_BYTES + bytes;
        if wanted > KV_ATOM_BYTES_MAX {
            return Err(SpaceError::TooLarge);
        }
        Ok(())
    }

    /// Checks that the keys may grow, with so many bytes that are to come. What is made together is not
    /// counted: all of it is refused, or nothing.
    fn bound_memory(&self, coming: usize) -> Result<(), SpaceError> {
        let open = self.draft.as_ref().map_or(0, |draft| draft.open_bytes());
        let bytes = self.bytes().saturating_sub(open).saturating_add(coming);
        if bytes > self.bytes_max {
            return Err(SpaceError::OutOfMemory);
        }
        Ok(())
    }

    fn touch(&mut self, key: &[u8]) {
        if let Some(draft) = &mut self.draft {
            draft.touch_watches(key);
        }
    }

    fn push(&mut self, operation: Operation) {
        if let Some(draft) = &mut self.draft {
            draft.push(self.table, operation);
        }
    }
}

fn bound_key(key: &[u8]) -> Result<(), SpaceError> {
    if key.len() > KV_KEY_BYTES_MAX {
        return Err(SpaceError::TooLarge);
    }
    Ok(())
}

fn bound_value(value: &[u8]) -> Result<(), SpaceError> {
    if value.len() > KV_VALUE_BYTES_MAX {
        return Err(SpaceError::TooLarge);
    }
    Ok(())
}
