"""What the kinds of tasks do differently: one file for each, behind one interface."""
