"""Prepare a dataset: list, check, assign splits and write shards, with the state on disk so that a kill loses little.

Kinds of sources are in `sources`. Read `prepare.py` first.
"""
