"""How does a request that an API has decoded become an answer?

The same for every API: deadlines, threads for what takes long, metrics. Read `inference.py` first.
"""
