"""The page at `/`: drop a picture, see its classes. One file, which loads nothing from elsewhere.

Read `index.html` first.
"""
