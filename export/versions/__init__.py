"""Keep versions of an export side by side, with one of them current.

Exports are made in `pipeline`; here they are only copied and numbered. Read `publish.py` first.
"""
