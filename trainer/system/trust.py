"""Allow code inside model files to run only where the user has said so for this very command.

A run directory or a model file cannot say it: it is `--trust`, and neither a setting nor a variable.
"""

_is_given = False


def set_trust(is_given: bool) -> bool:
    """Remember what --trust of the starting command says; return it, as typer's callbacks do."""
    global _is_given
    _is_given = is_given
    return is_given


def is_given() -> bool:
    return _is_given
