"""What trains and what is frozen: rules, scenarios, partitions, phases and recipes."""
