"""Variational auto-encoders on MNIST: the models and tools that the notebooks of the report share."""
