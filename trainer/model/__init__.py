"""Build classifiers: backbones, heads, weights from files, and what is frozen.

How a model is trained is not here but in `step`. Read `classifier.py` first.
"""
