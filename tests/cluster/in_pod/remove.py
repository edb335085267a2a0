"""Runs in the bench: removes all objects below a base and prints how many there were.

python3 - BASE
"""

import sys

from components.objects import open_objects
from components.store import RetryPolicy

objects = open_objects(sys.argv[1], RetryPolicy())
entries = [*objects.listed(""), *objects.unfinished("")]
for entry in entries:
    objects.remove(entry)
print(len(entries))
