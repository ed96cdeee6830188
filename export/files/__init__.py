"""The files of an export: what each says, and the one module that owns it."""
