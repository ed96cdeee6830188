"""What a server counts and measures, for Prometheus.

Read `metrics.py` first.
"""
