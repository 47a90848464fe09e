"""Jobs that need no env, for the tests of the pool; worker processes import them from here."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

from vla_gym.errors import InvalidOption
from vla_gym.evaluation.stage import Pair


@dataclass(frozen=True)
class Errand:
    """A job that answers with its number, or ends in some other way."""

    pair: Pair
    number: int = 0
    how: str = "answer"

    def run(self, stage):
        if self.how == "raise":
            raise RuntimeError("the job raised")
        if self.how == "refuse":
            raise InvalidOption("asked wrongly")
        if self.how == "exit":
            os._exit(3)
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "hang":
            time.sleep(3600)
        if self.how == "work":  # longer than the timeout of the test, with signs of life
            for _ in range(60):
                time.sleep(0.1)
                stage._beat()
        return self.number
