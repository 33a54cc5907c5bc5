"""Starts a run on several processes: on this machine, under Slurm, on TPUs, in Kubernetes."""
