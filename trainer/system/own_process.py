"""Tell a process that runs only a command of ours from one that runs other code too, such as a notebook."""

is_command = False
