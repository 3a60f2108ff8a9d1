"""Clients that others have written, against a pair of ours."""
