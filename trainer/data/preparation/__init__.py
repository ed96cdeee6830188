"""Prepare a dataset: list, check, assign splits and write shards, over a state on disk that a kill does not lose.

Kinds of sources are in `sources`. Read `prepare.py` first.
"""
