"""The command line: one file a verb, on what the commands share."""
