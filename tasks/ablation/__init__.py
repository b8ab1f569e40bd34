"""Points of a sweep, what they share, and the table of what came of them. May import training and what is below."""
