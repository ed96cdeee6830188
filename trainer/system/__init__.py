"""Talk to the operating system and to the frameworks: files, locks, memory, TensorFlow's runtime, versions.

Nothing here knows of datasets, runs or models. Read `atomic.py` first: everything on disk is written through it.
"""
