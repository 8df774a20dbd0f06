"""MLflow: the way to it, a study's runs there, what is written when, the model registry."""
