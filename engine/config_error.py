"""What a person is told about a mistake in a run's configuration."""

from __future__ import annotations

from collections.abc import Sequence


class ConfigError(Exception):
    """A mistake in the configuration: printed without a traceback, exit code 2.

    Example:
        train.learnin_rate is not a key.
          set by: train.learnin_rate=1e-4 on the command line
          Did you mean train.learning_rate? ...
    """

    def __init__(self, problem: str, *, advice: str, keys: Sequence[str] = (), places: Sequence[str] = ()) -> None:
        super().__init__(problem)
        self.problem = problem
        """What is wrong, with the value."""
        self.advice = advice
        """What to do about it."""
        self.keys = tuple(keys)
        """The keys that it is about."""
        self.places = tuple(places)
        """Where those that are not defaults were set."""

    def set_by(self, places: Sequence[str]) -> ConfigError:
        return ConfigError(self.problem, advice=self.advice, keys=self.keys, places=places)

    def __str__(self) -> str:
        origin = [f"  set by: {'; '.join(self.places)}"] if self.places else []
        return "\n".join([self.problem, *origin, f"  {self.advice}"])
