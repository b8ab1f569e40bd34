"""Strategies, devices, precision, gradients and statistics over processes. May import checkpoints and processes."""
