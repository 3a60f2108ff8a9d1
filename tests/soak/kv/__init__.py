"""The KV store while its nodes are killed, cut off and swapped: nothing acknowledged is lost, and each key is linearizable."""
