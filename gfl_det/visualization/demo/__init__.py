"""A page that shows what a detector sees in a dropped image, served to this machine."""
