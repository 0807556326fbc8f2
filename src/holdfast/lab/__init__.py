"""Measured on your machine: the workloads of ``holdfast bench``, and what it makes of them."""
