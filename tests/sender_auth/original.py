"""dkimpy and pyspf as they come, loaded beside the ones that server.sender_auth has changed."""

import importlib.util
import sys
from types import ModuleType


def load(name: str) -> ModuleType:
    """A fresh copy of an installed module; the module that others import stays as it is."""
    found = importlib.util.find_spec(name)
    assert found is not None and found.origin is not None
    spec = importlib.util.spec_from_file_location(f"original_{name.replace('.', '_')}", found.origin)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
