"""Processes under holdfast: a command that holds a lock, a job shared by many machines."""
