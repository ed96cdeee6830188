"""Run artifacts in their real runtimes, on samples as a client would send them.

What answers are allowed is decided in `gate`. Read `runtimes.py` first.
"""
