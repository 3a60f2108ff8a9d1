"""The whole appliance as a client at its address sees it, beside what Postgres alone needs in the same run."""
