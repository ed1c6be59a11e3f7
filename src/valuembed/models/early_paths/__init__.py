"""Modules under the paths that folders name which were saved before the package had rooms."""
