"""What a person asks and sees: options, live table, last screens. The only room that prints."""
