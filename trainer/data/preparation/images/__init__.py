"""Check one image file: its header, its size, whether it decodes, and what training would see of it.

Whole datasets are not seen here. Read `image_check.py` first.
"""
