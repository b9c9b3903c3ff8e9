"""What a pyramid of priors reaches in a data set, measured by the assigner that trains on it."""
