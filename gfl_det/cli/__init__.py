"""Command-line interface: one module per command, and shared arguments."""
