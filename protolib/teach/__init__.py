"""What only the notebooks need: figures of one run, and exercises with their checks."""
