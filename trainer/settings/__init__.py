"""The settings of a run by section: what each means, its range and its default."""
