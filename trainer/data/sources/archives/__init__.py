"""Read images from archives, within bounds and without unpacking anything under its own name.

Which folder of an archive is which class is decided as for folders. Read `archive.py` first.
"""
