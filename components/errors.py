"""Errors a user can act on."""


class UserError(ValueError):
    """One clear line: the key, file or utterance, the value, what was expected, what to do next. No traceback shown."""
