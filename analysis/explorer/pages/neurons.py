"""To come."""

from ..page import Chapter

CHAPTER = Chapter()
