"""Export a run: load its model, make every artifact, compare them, and publish the directory whole or not at all.

Converters are in `convert`, comparisons in `gate`. Read `export_run.py` first, then `make_export.py`.
"""
