"""Executing a plan: run folders, attempts and leases, the local pool of workers, the status."""
