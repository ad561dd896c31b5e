"""What a command would take, by formulas and on the meta device: nothing is loaded or trained."""
