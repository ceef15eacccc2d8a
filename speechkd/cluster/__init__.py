"""Starts the ranks of a run, by torchrun on this machine."""
