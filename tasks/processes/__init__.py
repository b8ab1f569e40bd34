"""Signals, processes of one run, and what is said on the terminal. Imports no other room."""
