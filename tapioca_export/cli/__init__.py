"""The command line: flags -> one library call -> print. The only importer of Click.

Option names, defaults and help come from `config.RunConfig`. Results go to stdout, everything else
to stderr; `--json` prints the artifact and nothing else. Heavy imports happen inside commands.
`options` turns fields and config files into options; the other modules are the commands.

Exit codes: 0 done; 1 an error the user can mend; 2 usage; 3 a gate was missed.
"""

from __future__ import annotations

from . import checking, intervening, reporting, starting
from .commands import main

__all__ = ["checking", "intervening", "main", "reporting", "starting"]
