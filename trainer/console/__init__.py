"""Print to people: the console, notes, answers, tables and progress bars.

Nothing here computes what a command answers, or imports from above `errors`. Read `output.py` first.
"""
