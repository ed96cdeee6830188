"""Count and measure requests and runs, for Prometheus.

Read `metrics.py` first.
"""
