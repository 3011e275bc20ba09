"""Training: losses, noise, which parameters, in which precision, and adapters."""
