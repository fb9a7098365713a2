"""Print, as JSON, which packages the Python that runs this file can see. Standard library only.

{"python": version, "versions": {name: version}, "folders": [where they lie, in search order]}
Names are in lower case, with "-" for "_" and ".".
"""

import importlib.metadata
import json
import platform
import re


def canonical(name):
    """'Typing_Extensions' -> 'typing-extensions'."""
    return re.sub(r"[-_.]+", "-", name).lower()


def probe():
    """Look through sys.path once; the first of two copies counts, as it does for `import`."""
    found, folders = {}, []
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(canonical(name), distribution.version)
            folders.append(str(distribution.locate_file("")))
    return {"python": platform.python_version(), "versions": found, "folders": list(dict.fromkeys(folders))}


if __name__ == "__main__":
    print(json.dumps(probe()))
