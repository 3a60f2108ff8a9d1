"""The KV store beside Redis with the same guarantee."""
