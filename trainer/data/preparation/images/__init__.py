"""Check one image file: its header, its size, whether it decodes, and whether training decodes it alike.

Whole datasets are handled elsewhere. Read `image_check.py` first.
"""
