"""The test split, opened once after every choice; other readouts and published rows are judged alike."""
