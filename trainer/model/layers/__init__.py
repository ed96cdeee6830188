"""Replace layers of Keras that would depend on the number of replicas or run slowly.

Whole networks do not belong here. Read `batch_norm.py` first.
"""
