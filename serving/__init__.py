"""Serving: a local TensorFlow Serving compatible server, a client, and Kubernetes manifests."""
