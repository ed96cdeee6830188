"""What is served: models, their versions and states, and the runtimes that hold them in memory.

Nothing of a protocol. Read `model.py` and `servable.py` first.
"""
