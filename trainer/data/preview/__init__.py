"""Draw augmented images.

Nothing here is part of training. Read `preview.py` first.
"""
