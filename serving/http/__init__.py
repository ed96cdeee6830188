"""Read bodies within limits, convert tensors in JSON, and exchange request and answer, for every API over HTTP.

Nothing of one API's paths or documents. Read `exchange.py` first.
"""
