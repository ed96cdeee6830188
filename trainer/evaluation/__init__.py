"""Evaluate runs and compare them.

Metrics as functions of labels and logits are in `metrics`. Read `evaluator.py` first.
"""
