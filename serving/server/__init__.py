"""The process of a server: its listeners, its start and its end.

Read `local_server.py` first.
"""
