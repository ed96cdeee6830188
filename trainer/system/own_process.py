"""Whether this process is a command of ours and runs nothing else, as a notebook does that imports `trainer`."""

is_command = False
