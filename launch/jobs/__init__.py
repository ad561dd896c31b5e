"""Jobs of schedulers: what is submitted, how, and what becomes of it. Imports no torch."""
