"""The command line: one file per command, no arithmetic; a command's imports happen when it is called."""
