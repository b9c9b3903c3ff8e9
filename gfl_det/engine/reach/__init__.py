"""Regression range of a pyramid of priors on a dataset, measured with its assigner."""
