"""What every room may need and no user does: files, locks, text for people, the state of the process.

These files are imported one by one: this room has no face.
"""
