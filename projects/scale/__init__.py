"""Planning of runs over very many images."""
