"""What the HTTP APIs have in common: bodies within limits, tensors in JSON, and one exchange of request and answer.

Nothing of one API's paths or documents. Read `exchange.py` first.
"""
