//! Control of a Postgres cluster.
