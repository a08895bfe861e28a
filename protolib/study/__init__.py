"""Many runs, kept and set beside the paper: the runner, the grid of its tables, the ledger and its
pages."""
