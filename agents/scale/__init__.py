"""Scaling: several processes, fast forms, devices and CUDA graphs. Nothing here changes what is learned."""
