"""Names in metrics.jsonl that others go by. Imports nothing, so that reading needs no torch."""

VAL_LOSS = "val_loss"  # the value that tells which checkpoint, and which trial, is the best
