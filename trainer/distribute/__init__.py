"""Connect replicas: how many there are, which part of a batch each takes, how they reduce gradients.

Models and steps do not belong here. Read `engine.py` first, then `topology.py`, which alone divides batches.
"""
