"""Decide which example comes next, by arithmetic alone.

No file is read here. Read `order.py` first.
"""
