"""Runs on a SLURM cluster: submitted once, continued until they are done, and followed."""
