"""Print what a launch with the same arguments will do, worked out by the code that will do it.

Nothing here decides anything. Read `document.py` first.
"""
