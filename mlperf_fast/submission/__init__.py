"""From result logs to a submission. Imports no torch: it runs where only the logs are."""
