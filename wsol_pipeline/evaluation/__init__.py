"""Evaluation: maps, boxes and counts for all thresholds in one pass, and every choice made of them."""
