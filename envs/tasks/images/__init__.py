"""Tasks on images of MNIST and Omniglot."""
