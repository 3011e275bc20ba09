"""The parts that BART is made of, and the contracts of those that may be replaced."""
