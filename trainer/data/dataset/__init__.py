"""Own the prepared dataset on disk: manifest, shards, index, and how a split of it is read.

Making a dataset is in `preparation`. Read `manifest.py` first.
"""
