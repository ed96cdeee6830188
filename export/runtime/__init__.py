"""Run artifacts in their real runtimes, on samples as clients send them.

Answers are judged in `gate`. Read `runtimes.py` first.
"""
