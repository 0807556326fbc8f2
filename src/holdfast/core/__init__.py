"""Protocols: what holdfast does, written once and run in any `World`."""
