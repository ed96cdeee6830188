"""Write Kubernetes manifests for an export, and check them for what schemas miss.

No cluster is contacted here. Read `manifests.py` first.
"""
