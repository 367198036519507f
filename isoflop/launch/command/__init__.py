"""Runs by a command of the user's own: the wrapper that executes it, and what it leaves."""
