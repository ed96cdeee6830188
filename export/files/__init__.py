"""Own the files of an export: signature, formats, checksums, provenance, parity and latency reports.

Measuring is in `gate`. Read `signature.py` first.
"""
