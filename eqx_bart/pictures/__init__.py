"""Pictures of what a model does: attention, beams, and the log-probabilities of a text."""
