"""Replicas: who there is, who takes which part of a batch, and how they add up their gradients."""
