"""What studies and verdicts have kept, as pages and tables; no data is opened for them."""
