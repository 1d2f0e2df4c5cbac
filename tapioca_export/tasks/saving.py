"""What is mended in files that libraries have saved, for those who read them with other versions."""

from __future__ import annotations

import json
from pathlib import Path


def name_for_older(file: Path) -> None:
    """Give a tokenizer of no family's own the name that transformers before 5 knows as well.

    Optimum and others run with these.
    """
    if not file.is_file():
        return
    settings = json.loads(file.read_text(encoding="utf-8"))
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
