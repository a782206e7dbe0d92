"""The explorer: a local web app in which a run's features are browsed, compared and shared."""
