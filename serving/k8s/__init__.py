"""Serving in Kubernetes: what is written for a cluster, and the commands that bring a model into it."""
