"""The groups of golden files: a module for each kind of number, a function for each group.

A group's function yields cases (name, tensors, description); each case becomes the file
tests/goldens/<group>_<name>.safetensors, whose arrays are the peers' results and whose metadata entry "golden"
is the description as JSON: what the Rust test needs to compute the same. A fourth item in a case is a function
that fills a folder: it becomes tests/goldens/<group>_<name>, for files whose form is the golden thing. To add a
group, write such a function in one of these modules and decorate it with @group.
"""

GROUPS = {}


def group(function):
    """Registers a function that yields a group's cases."""
    GROUPS[function.__name__] = function
    return function
