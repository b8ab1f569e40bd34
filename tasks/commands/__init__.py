"""One file a verb: parse, call, print; no engine. May import every room below."""
