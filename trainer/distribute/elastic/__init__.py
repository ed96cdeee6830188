"""Let the workers of a job come and go: who may take part, who does, and how the others learn of it.

The training state does not belong here; `launch/elastic_worker.py` keeps it. Read `supervisor.py` first.
"""
