"""Train image classifiers: from a folder of labelled images to a checked, resumable run directory.

Only `errors` and `__main__` stand beside the folders; the levels of the folders are in ARCHITECTURE.md.
Read `launch/plan_run.py` first: it shows how the parts come together.
"""

__version__ = "0.1.0"
