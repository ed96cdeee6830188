"""Decide everything before a run starts: sizes, steps, precision, caching, and the recipe.

Nothing is started or written here. Read `plan.py` first.
"""
