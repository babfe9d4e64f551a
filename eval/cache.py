"""Results of single rows, kept on disk between audits, and the fingerprint that tells one model from another."""

import hashlib
import os
import sqlite3
from pathlib import Path

from peft import PeftConfig
from transformers.utils import cached_file

from pmc_rl.errors import RecipeError

WEIGHTS_AND_CONFIG = ("*.safetensors", "*.bin", "config.json", "generation_config.json", "adapter_config.json")


def model_fingerprint(name_or_path: str, revision: str) -> str:
    """
    What a model computes, as a hash of its weights and configs, of an adapter also those of its base model.

    A model of the Hub is told by the commit its files come from.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        return Path(cached_file(name_or_path, "config.json", revision=revision)).parent.name
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for pattern in WEIGHTS_AND_CONFIG for path in folder.glob(pattern)):
        with open(path, "rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'blake2b').hexdigest()}\n".encode())
    if (folder / "adapter_config.json").is_file():
        config = PeftConfig.from_pretrained(name_or_path)
        digest.update(model_fingerprint(config.base_model_name_or_path, revision).encode())
    return digest.hexdigest()


class RowCache:
    """
    Keys to values, both bytes, in one SQLite file for its owner's eyes only; what was put is safe from a sudden end.
    Also the seconds that each pass of each model has taken, over all audits.

    Raises:
        RecipeError: the file is no cache.
    """

    def __init__(self, path: Path):
        # SQLite gives its journal the mode of the file
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self.database = sqlite3.connect(path)
        try:
            self.database.execute("PRAGMA journal_mode = WAL")  # a commit a batch, without waiting for the disk
            self.database.execute("PRAGMA synchronous = NORMAL")
            with self.database:
                self.database.execute("CREATE TABLE IF NOT EXISTS rows (key BLOB PRIMARY KEY, value BLOB)")
                self.database.execute("CREATE TABLE IF NOT EXISTS times (model, pass, seconds, rows)")
        except sqlite3.DatabaseError as error:
            advice = "unless another audit is using it, delete it"
            raise RecipeError([f"the cache {str(path)!r} cannot be used ({error}); {advice}"]) from error

    def get(self, keys: list[bytes]) -> dict[bytes, bytes]:
        """The values of those keys that are there."""
        query = "SELECT value FROM rows WHERE key = ?"
        found = ((key, self.database.execute(query, (key,)).fetchone()) for key in keys)
        return {key: value[0] for key, value in found if value is not None}

    def put(self, values: dict[bytes, bytes], model: str, what: str, seconds: float) -> None:
        """Keeps values that a pass of a model, called `what`, has made in so many seconds."""
        with self.database:
            self.database.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?)", values.items())
            self.database.execute("INSERT INTO times VALUES (?, ?, ?, ?)", (model, what, seconds, len(values)))

    def times(self, model: str) -> dict[str, dict]:
        """Seconds and rows of each pass of a model, by the pass's name."""
        query = "SELECT pass, sum(seconds), sum(rows) FROM times WHERE model = ? GROUP BY pass"
        found = self.database.execute(query, (model,))
        return {what: {"seconds": seconds, "rows": rows} for what, seconds, rows in found}
