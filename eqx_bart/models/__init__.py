"""BART: its encoder, decoder and cache, and a model for each head."""
