"""A run on disk: assembled, loaded, imported, exported, joined. May import the tasks and the rooms below them."""
