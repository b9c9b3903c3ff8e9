"""Large pictures in tiles, against their parts one by one."""
