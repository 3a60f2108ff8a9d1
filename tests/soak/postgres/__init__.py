"""The Postgres store while its nodes are killed, cut off, filled up and swapped: what was promised to clients holds."""
