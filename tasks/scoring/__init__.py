"""Scores of text and speech, and the recogniser. Imports no other room of tasks."""
