"""Compute once what the frozen first layers give, keep it, and train on it.

The loop does not know that its inputs are features. Read `decision.py` first, then `extract.py`.
"""
