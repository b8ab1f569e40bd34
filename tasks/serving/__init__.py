"""The engines of evaluate and translate, also for Python. May import runs, scoring, tasks and the rooms below them."""
