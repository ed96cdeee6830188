"""Hold models in memory: their versions and states, and the runtimes that run them.

Nothing of a protocol. Read `model.py` and `servable.py` first.
"""
