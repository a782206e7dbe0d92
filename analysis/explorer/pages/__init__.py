"""The pages of the explorer, one a file: what each needs of a run, as a dataclass, and where it lies."""
