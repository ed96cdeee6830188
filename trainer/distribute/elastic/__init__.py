"""Change the members of a running job: which hosts may take part, which workers do, and how workers are told.

The training state does not belong here; `launch/elastic_worker.py` keeps it. Read `supervisor.py` first.
"""
