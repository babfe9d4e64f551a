"""Metrics, one file a family: pure functions, and one `evaluate.Metric`, of unlearn quality and utility."""
