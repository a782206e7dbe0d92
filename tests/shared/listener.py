"""A reporter that keeps what it is told."""

from thresher.progress import Reporter


class Listener(Reporter):
    """Keeps what is said and warned of, in order."""

    def __init__(self):
        self.said: list[str] = []
        self.warned: list[str] = []

    def say(self, text):
        self.said.append(text)

    def warn(self, text):
        self.warned.append(text)
