"""Every error headwater raises on purpose.

    HeadwaterError            one line: what was got, what was expected, the likely cause, the next step
    ├── UsageError            options that do not fit together
    ├── DataError             training rows and queries
    ├── ModelError            checkpoints, adapters, tokenizers, layers
    ├── RunError              a run directory that belongs to something else, or is damaged
    └── NumericalError        NaN or infinity where a number must be

The command line prints the message of a HeadwaterError as one line and exits with code 2.
Anything else that escapes is a bug of headwater.
"""

from __future__ import annotations

from typing import Any


class HeadwaterError(Exception):
    """A mistake that the user can mend.

    Args:
        got: what was found, naming the file, row, option or layer.
        expected: what should have been there.
        cause: the likely cause, where one is known.
        fix: the next step to take.
    """

    exit_code = 2

    def __init__(self, got: str, *, expected: str, fix: str, cause: str | None = None) -> None:
        self.got, self.expected, self.cause, self.fix = got, expected, cause, fix
        because = f" (likely cause: {cause})" if cause else ""
        super().__init__(" ".join(f"{got}; expected {expected}{because}. Next: {fix}".split()))

    def __reduce__(self) -> tuple[Any, ...]:
        """For errors that cross over from one process to another."""
        return _again, (type(self), self.got, self.expected, self.fix, self.cause)


def _again(kind: type[HeadwaterError], got: str, expected: str, fix: str, cause: str | None) -> HeadwaterError:
    return kind(got, expected=expected, fix=fix, cause=cause)


class UsageError(HeadwaterError):
    """Options or arguments that do not fit together."""


class DataError(HeadwaterError):
    """Training rows or queries that cannot be read or used."""


class ModelError(HeadwaterError):
    """Checkpoints, adapters, tokenizers or layers that cannot be used."""


class RunError(HeadwaterError):
    """A run directory that belongs to other arguments, or is damaged."""


class NumericalError(HeadwaterError):
    """NaN or infinity in a model, a gradient or a score."""
