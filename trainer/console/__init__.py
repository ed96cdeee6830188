"""Print to people: the console, notes, answers, tables and progress bars.

What a command computes does not belong here, and nothing here imports from above `errors`. Read `output.py` first.
"""
