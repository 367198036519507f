"""From what others wrote to rows of runs: tables in any common form, trackers, data frames."""
