"""Names of files and figures that others go by. Imports nothing, so that reading needs no torch."""

VAL_LOSS = "val_loss"  # the value that tells which checkpoint, and which trial, is the best
EVALUATION = "evaluation.json"  # what `ldm evaluate` has measured
ENERGY = "energy"  # of that, the energy score, by which evaluations are compared
