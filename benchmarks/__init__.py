"""Speed and memory against the reference implementations, and what grows with size: imports all rooms of voxzoo, and is
imported by none.
"""
