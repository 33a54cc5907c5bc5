"""Starts a run on several processes: here, under Slurm, in Kubernetes, at any cloud."""
