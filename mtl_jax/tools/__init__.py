"""What is done with a run, or before one: predict, plan, cost."""
