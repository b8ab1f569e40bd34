"""What a run will take before it runs: shapes, memory, FLOPs. May import runs, the tasks, and the rooms below them."""
