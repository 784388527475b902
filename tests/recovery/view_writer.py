"""A process that refreshes the views of a lab one after the other; started by a test that kills it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.property.view_lab import ViewLab

if __name__ == "__main__":
    lab = ViewLab(Path(sys.argv[1]), json.loads(sys.argv[2]))
    checked = lab.define()
    for view in lab.queries:
        lab.refresh(checked, view)
