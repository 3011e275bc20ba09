"""Tasks: text in, text out."""

from .minimum_bayes_risk import generate_minimum_risk, minimum_risk, MinimumRisk


__all__ = ["MinimumRisk", "generate_minimum_risk", "minimum_risk"]
