"""Compute the features of the frozen first layers once, store them, and train on them.

The training loop does not know that its inputs are features. Read `decision.py` first, then `extract.py`.
"""
