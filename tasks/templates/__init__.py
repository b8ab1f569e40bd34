"""What `voxzoo parts new` copies: small parts that work, under the names of whoever asks. May import all but commands.

Each kind has three files here: the class, its YAML and its test. `my_zoo`, `mine` and `Mine` stand for the names.
"""
