"""Kubernetes manifests as package data: kustomize trees for serving and training, and schemas of custom resources."""
