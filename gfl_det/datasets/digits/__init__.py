"""The embedded data set: scans of digits, composed into pictures."""
