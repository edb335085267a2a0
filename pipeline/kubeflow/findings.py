"""What a check finds, and how a check is made."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from components.step import StageError, UserError
from pipeline.kubeflow.cluster import Forbidden

State = Literal["pass", "fail", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        subject: What was looked at.
        state: How it is.
        text: What was seen.
        mend: What to do about it; empty where there is nothing to do.
    """

    subject: str
    state: State
    text: str
    mend: str = ""


def attempted(subject: str, check: Callable[..., Finding], *arguments: object) -> Iterator[Finding]:
    """Makes a check; a right that is missing for looking is no failure of what is looked at."""
    try:
        yield check(*arguments)
    except Forbidden as error:
        yield Finding(subject, "skipped", str(error))
    except (UserError, StageError) as error:
        yield Finding(subject, "fail", str(error))
