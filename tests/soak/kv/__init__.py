"""The KV store while its nodes are killed, cut off and swapped: what clients were told of each key holds."""
