"""Training iterations captured and replayed as CUDA graphs."""
