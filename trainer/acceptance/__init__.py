"""Find out whether this system works on this machine, by running it: `trainer doctor --accept`.

Each check runs in a process of its own and says what it expected and what it saw. Read `checks.py` first: it lists
them. What a machine has, without running anything, is asked in `doctor`.
"""
