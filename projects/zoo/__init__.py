"""A GFL head in each detector of MMDetection's zoo."""
