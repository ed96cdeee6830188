"""Change training images at random, keyed by (seed, epoch, example).

Evaluation and export use none of it. Read `presets.py` first, then `on_device.py`.
"""
