"""Devices and hosts: the mesh, processes, random keys, masked reductions, checkpoints. Knows no model."""
