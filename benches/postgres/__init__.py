"""The Postgres store beside bare Postgres and beside Patroni: the same server, the same client, in the same run."""
