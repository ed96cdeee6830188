"""The Open Inference Protocol v2 (KServe's predict protocol v2), over REST and gRPC.

From the bytes of a request to those of its answer; nothing of the models themselves. Read `infer.py` first, then
`rest_api.py` and `servicer.py`.
"""
