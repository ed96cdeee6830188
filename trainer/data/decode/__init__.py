"""Turn encoded bytes into pixels, the same way in training, evaluation, export and serving.

Random changes are in `augmentation`. Read `preprocess.py` first.
"""
