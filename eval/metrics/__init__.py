"""Metrics, one file a family: pure functions, and a thin `evaluate.Metric` where one is useful on its own."""
