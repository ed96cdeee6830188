"""Protocol buffers that no package of ours brings, and the code that protoc makes of them.

After a change: .venv/bin/python -m grpc_tools.protoc -I. --python_out=. serving/protocol/protos/*.proto
"""
