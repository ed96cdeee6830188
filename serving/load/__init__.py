"""How fast does a server answer, and under how much load?

Requests are made and timed here; nothing of a model. Read `generate.py` first.
"""
