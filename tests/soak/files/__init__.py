"""The files store under a random mutator, while its daemons are killed and cut off from each other."""
