"""Job entries, one command each: import_dataset, train, tune_<method>, evaluate; demo walks through them."""
