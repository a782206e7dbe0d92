"""Names of features: what reads them is of `naming/names_file.py`."""

from ..naming.names_file import *  # noqa: F403
from ..naming.names_file import Name as Name
from ..naming.names_file import printable as printable
from ..naming.names_file import read_names as read_names
