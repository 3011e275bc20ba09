"""Training: losses, noise, trainable parameters, precision, and adapters."""
