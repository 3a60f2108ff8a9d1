//! A row of the source, and what tells it from others.

/// A row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// Its columns as text, in order; the first is the key.
    pub(super) values: Vec<Option<String>>,
    /// Its watermark as text.
    pub(super) mark: Option<String>,
    /// Its watermark is not of a future that the clock does not know.
    pub(super) is_believed: bool,
    /// It counts as deleted.
    pub(super) is_deleted: bool,
    /// Its watermark as a number that grows with it, where it has one.
    pub(super) version: Option<i64>,
}

impl Row {
    /// Returns the key; rows without one are not read.
    pub(super) fn key(&self) -> &str {
        self.values
            .first()
            .and_then(Option::as_deref)
            .unwrap_or_default()
    }

    /// Returns the hash of all that it holds.
    pub(super) fn hash(&self) -> u64 {
        hash(self.values.iter().map(Option::as_deref))
    }

    /// Returns about how much memory it takes.
    pub(super) fn bytes(&self) -> usize {
        let text = |value: &Option<String>| value.as_ref().map_or(0, String::len);
        64_usize.saturating_add(self.values.iter().map(text).sum())
    }
}

/// Returns the hash of a watermark.
pub(super) fn mark_hash(mark: Option<&str>) -> u64 {
    hash([mark])
}

fn hash<'a>(values: impl IntoIterator<Item = Option<&'a str>>) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for value in values {
        // Absent is not empty, and "a", "b" is not "ab".
        let length = value.map_or(0, |text| {
            u64::try_from(text.len())
                .unwrap_or(u64::MAX)
                .saturating_add(1)
        });
        hasher.update(&length.to_le_bytes());
        hasher.update(value.unwrap_or_default().as_bytes());
    }
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(bytes)
}

/// What is to be done to an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The document of this row is to be as it is.
    Put(Row),
    /// There is to be no document of this key.
    Remove(String),
}

impl Change {
    pub(super) fn of(row: Row) -> Self {
        if row.is_deleted {
            Self::Remove(row.key().to_owned())
        } else {
            Self::Put(row)
        }
    }

    pub(super) fn key(&self) -> &str {
        match self {
            Self::Put(row) => row.key(),
            Self::Remove(key) => key,
        }
    }
}

/// A document, as an engine lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: String,
    /// [`Row::hash`] and [`mark_hash`] of its row; `None` if there are several documents of the key, which
    /// are to be made one.
    pub(super) hashes: Option<(u64, u64)>,
}

/// What a batch of changes has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Applied {
    /// Documents that were written.
    pub(super) written: u64,
    /// Documents that were removed.
    pub(super) removed: u64,
    /// Documents that were left as they are, since they are of a later watermark than their rows.
    pub(super) newer: u64,
}

impl std::ops::AddAssign for Applied {
    fn add_assign(&mut self, more: Self) {
        self.written = self.written.saturating_add(more.written);
        self.removed = self.removed.saturating_add(more.removed);
        self.newer = self.newer.saturating_add(more.newer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_differ_have_different_hashes() {
        let rows: [&[Option<&str>]; 5] = [
            &[Some("a"), Some("b")],
            &[Some("ab"), Some("")],
            &[Some("ab"), None],
            &[None, Some("ab")],
            &[Some("a"), None, Some("b")],
        ];
        let hashes: std::collections::BTreeSet<u64> =
            rows.iter().map(|row| hash(row.iter().copied())).collect();
        assert_eq!(hashes.len(), rows.len());
    }
}
