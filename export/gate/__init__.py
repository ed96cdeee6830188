"""The gate that artifacts must pass before they are published."""
