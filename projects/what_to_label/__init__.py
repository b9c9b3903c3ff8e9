"""Which pictures to label next: chosen ones against random ones."""
