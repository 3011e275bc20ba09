"""Generation: from what an encoder says to token ids."""
