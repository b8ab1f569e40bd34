"""Training a run and its stages, and what goes along with it. May import planning, runs, tasks and the rooms below."""
