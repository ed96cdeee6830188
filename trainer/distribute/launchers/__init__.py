"""Starts the workers of a job on this machine and on others, watches over them, and leaves none of them behind."""
