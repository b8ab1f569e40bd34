"""What the task of a speech LM is made of: rows as sequences, and the chain that serves. Imports nothing of the other
rooms."""
