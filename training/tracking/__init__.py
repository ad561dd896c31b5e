"""Where the record of a run goes: files beside it, TensorBoard, Weights & Biases."""
