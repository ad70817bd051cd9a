"""Several processes, fast forms, devices and CUDA graphs: nothing here changes what is learned."""
