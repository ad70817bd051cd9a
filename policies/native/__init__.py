"""C loops for CPUs, the allocator, and the headers the loops share."""
