"""Draw what augmentation makes of images.

Nothing here takes part in training. Read `preview.py` first.
"""
