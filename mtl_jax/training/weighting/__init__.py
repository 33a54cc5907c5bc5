"""How the losses of the tasks are weighed against each other."""
