"""Own the prepared dataset on disk: manifest, shards, indexes, and reading a split.

Making a dataset is in `preparation`. Read `manifest.py` first.
"""
