"""From a study to a plan: matched-budget runs, reviewed before anything is spent."""
