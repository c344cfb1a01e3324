"""Hold a harness' tasks to what it has, and tell of what it failed: alike for every harness."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ecoflap.core.errors import DataError, EcoflapError, nearest, one_line, refuse_below_one


@dataclass(frozen=True)
class Harness:
    """Names a harness, and finds its tasks.

    :param name: What its evaluator is called, and its package.
    :param absent: Says that it is not installed, and how it is.
    :param listing: The command that lists its tasks.
    :param manager: Makes its list of tasks: of those that are asked for and the folder of one's own, or of all.
    """

    name: str
    absent: str
    listing: str
    manager: Callable[[tuple[str, ...], Path | None], Any]

    def wrong_tasks(self, tasks: tuple[str, ...], include_path: Path | None) -> Iterator[str]:
        """Say why tasks cannot be run."""
        if find_spec(self.name) is None:
            yield self.absent
        elif include_path is not None and not include_path.is_dir():
            yield f"{self.name}: include_path: {include_path} is no folder."
        else:
            known = self.manager(tasks, include_path).all_tasks
            for task in tasks:
                if task not in known:
                    unknown = f"{self.name}: tasks: the harness knows no {task!r} among {len(known)} tasks."
                    yield f"{unknown}{nearest(task, known)} All of them: {self.listing}."

    @contextmanager
    def explained(self, *others: type[Exception], retried: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """Tell what a harness raises inside as a mistake of its data.

        :param others: Errors of its own and of its libraries, beside those of files and values.
        :param retried: Those of which the cause is what it tried several times.
        """
        told: tuple[type[Exception], ...] = (OSError, ValueError, NotImplementedError, *others, *retried)
        try:
            yield
        except told as error:
            cause = error.__cause__ if isinstance(error, retried) else None
            raise DataError(
                f"{self.name}: {one_line(cause or error).rstrip('.')}. Data of its tasks come from the Hugging Face "
                f"hub, unless they were read before; tasks on files of your own are found in include_path."
            ) from error


def check_tasks(tasks: tuple[str, ...], limit: int | float | None, batch_size: int) -> None:
    """Refuse parameters of an evaluator with which no harness runs."""
    if not tasks:
        raise EcoflapError("tasks is empty; at least one is needed")
    refuse_below_one("batch_size", batch_size)
    if limit is not None and limit <= 0:
        raise EcoflapError(f"limit is {limit}; more than 0 is needed, or null for all documents")


def code_of(include_path: Path | None) -> tuple[Path, ...]:
    """Name the folder of tasks: a harness runs the Python that a task of one's own names."""
    return () if include_path is None else (include_path,)


def seeds(seed: int) -> Mapping[str, int]:
    """Give the arguments of a harness that seed all that it draws."""
    return dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), seed)
