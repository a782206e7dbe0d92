"""The activation store: what a harvest writes, what every later stage reads."""
