"""Training and evaluation, the same for every method and every data set."""
