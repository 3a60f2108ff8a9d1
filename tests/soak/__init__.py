"""Long random trials of what is guaranteed, run by `scripts/soak`."""
