"""The processes that do one run together, as one of them sees them; by itself it is the only one."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

Item = TypeVar("Item")
Key = TypeVar("Key")
Value = TypeVar("Value")


class Ranks:
    """One process that does a whole run, and what several ask of each other answered by it alone.

    Code that is given ranks says who does what, and not whether there are several. All of them come to the same calls
    in the same order.

    :cvar rank: Which of the processes this is, from 0. The first writes the run folder.
    :cvar size: How many there are.
    """

    rank: int = 0
    size: int = 1

    def gather(self, mine: Value) -> list[Value]:
        """Give what each of them has, in their order, to all. Values may hold tensors."""
        return [mine]

    def gather_each(self, mine: Mapping[int, Value], count: int, keep: Callable[[Value], Value]) -> list[Value]:
        """Give things of which each of them has some, in the order of their numbers, to all.

        They come one at a time, and what is another's is put away as it comes, so that this process need not have room
        for all of them.

        :param mine: By their numbers. Each is some process' own, and one's alone.
        :param count: How many there are.
        :param keep: Puts away what another has sent, and gives what is to be held of it.
        """
        found = []
        for number in range(count):
            (one,) = (one for one in self.gather(mine.get(number)) if one is not None)
            found.append(one if number in mine else keep(one))
        return found

    def collect_each(
        self, mine: dict[Key, Value], owner_of: Mapping[Key, int]
    ) -> Iterator[tuple[Key, dict[int, Value]]]:
        """Give things of which each of them may have a part to the one that owns them, one after another.

        It is given those of which anybody has a part, with the parts by process, in their order.

        :param mine: This process' parts, by what they are of; they are taken out as they are given or sent.
        :param owner_of: Who owns each thing, in the same order everywhere.
        """
        for key in owner_of:
            if key in mine:
                yield key, {self.rank: mine.pop(key)}

    def first(self, make: Callable[[], Value]) -> Value:
        """Let the first of them make something, and give it to all. Where that raises, the run ends for all."""
        return make()

    def at_first(self, do: Callable[[], object]) -> None:
        """Let the first of them do something, and nobody wait for it."""
        if self.rank == 0:
            do()

    def deal(self, items: Iterable[Item], compute: Callable[[Item], Value]) -> list[Value]:
        """Compute something of each item, in turn by one of them, and give all of it in the items' order to all.

        :param items: The same everywhere; all are read.
        """
        mine = [compute(item) for number, item in enumerate(items) if number % self.size == self.rank]
        dealt = self.gather(mine)
        return [dealt[number % self.size][number // self.size] for number in range(sum(map(len, dealt)))]

    def why(self, error: BaseException) -> str:
        """Say why a run ends with an error, which may be that of another process."""
        return str(error) or repr(error)


ALONE = Ranks()
"""The one process of most runs."""
