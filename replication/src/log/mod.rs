//! The segmented log: the durable form of what is shipped.
