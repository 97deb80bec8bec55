"""Symbols without data: the network, its losses and the optimizers, as graphs."""
