"""What a study tells while it goes on. Who wants to know is a listener, called as `listener(event, trial, details)`:

    execute(plan, [lambda event, trial, details: print(event, trial)])

    leased        the study is this driver's: `lease`
    opened        its trials can be read: `ledger`, `lease`
    planned       trials are about to run: `trials` in all, `done`, `adopted` (numbers), `concurrent`, `workers`,
                  `device`, `recipe` (what a trial trains, a sentence), `images` (what its training images are),
                  `pruning` (a sentence), `measures` (what validation and test will, a sentence each)
      started       trial n has `parameters`, and of a confirmation `confirms` and `seed`
      launched      its process is about to train
      position      where it stands in its epoch: `position`
      epoch         an epoch ended: what `run.reportable` keeps of its record
      died          its worker died; another goes on. If it could say why: `kind`, `message`
      stopping      it was asked to write a checkpoint and end
      complete      `values` by objective, its last `record`, its `folder`
      pruned
      failed        `kind`, `message`
    over          no trial runs any more
    interrupted   a signal ended them: `balance`, `kept` (trial -> position of its checkpoint), `asked`
    found         `outcome`
    closed        whatever happened: `error`, or None

`trial` is None where none is meant. What a listener raises ends the study as it stands; the same command continues it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

Listener = Callable[[str, int | None, Mapping[str, Any]], None]


class Telling:
    """Tells every listener, in their order; called as they are."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self.listeners = tuple(listeners)

    def __call__(self, event: str, trial: int | None, details: Mapping[str, Any]) -> None:
        for listener in self.listeners:
            listener(event, trial, details)

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Within lies the study's work; "closed" is told once it is left, by whatever way."""
        try:
            yield
        except BaseException as error:
            self("closed", None, {"error": error})
            raise
        self("closed", None, {"error": None})
