"""Measure, predict, plan."""
