"""What a study's results say: intervals, comparisons, claims, the recommendation."""
