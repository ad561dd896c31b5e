"""Our loader and its peers, a module each, run in environments of their own."""
