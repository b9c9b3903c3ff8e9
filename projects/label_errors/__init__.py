"""Errors put into held-out labels, and how well each method finds them."""
