"""Studies of many runs: settings, runner, statistics and report."""
