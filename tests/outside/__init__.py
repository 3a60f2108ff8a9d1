"""Drives the built `understudy` from outside, as its user does: command line, files, HTTP.

What measures it (`benches/`) and what tries to break it for hours (`tests/soak/`) share this.
"""
