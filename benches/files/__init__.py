"""The files store beside rsync: the same tree, the same changes, in the same run."""
