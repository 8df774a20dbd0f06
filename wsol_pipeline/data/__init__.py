"""Datasets: importers write Parquet shards with a manifest; plan and readers give their rows back, in a known order."""
