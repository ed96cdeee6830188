"""Read weights and models from files of strangers: nothing in them is executed, nothing grows without bound.

Matching weights to a model is in `match_weights.py`, one level up. Read `weight_files.py` first.
"""
