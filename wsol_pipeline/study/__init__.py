"""Many trainings: what is tried, on which ledger, under whose lease, who is told, what was found."""
