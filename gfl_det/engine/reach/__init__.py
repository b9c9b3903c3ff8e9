"""The regression range of a pyramid of priors in a data set, measured by its assigner."""
