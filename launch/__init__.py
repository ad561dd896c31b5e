"""The command line, the processes that it starts, the demo and the report."""
