"""Checkpoints written in the background: the training waits for a copy in memory, not for the disk."""

from __future__ import annotations

import threading
from types import TracebackType

from torch import Tensor

from veilray.models.weights import save_weights
from veilray.obfuscation.config import NoiseConfig, Recorruption
from veilray.training.run import RunFolder
from veilray.training.state import TrainingState


class CheckpointWriter:
    """Writes checkpoints and the best weights of a run, one at a time, in a thread.

    Files are written aside, brought to the disk and renamed, so that the process may be killed at any moment: the last
    complete checkpoint stays. When the context is left by an error the write under way still ends, and its own error is
    dropped; at Ctrl-C it is left to its fate.
    """

    def __init__(self, run: RunFolder, *, noise: NoiseConfig, recorruption: Recorruption | None = None) -> None:
        self._run = run
        self._noise, self._recorruption = noise, recorruption
        self._memory: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None and not isinstance(error, KeyboardInterrupt):
            self._thread.join()

    @property
    def failure(self) -> Exception | None:
        """Why the last write failed; None where it did not, or is still under way."""
        return None if self._under_way() else self._failure

    def save(self, state: TrainingState, *, best: bool) -> None:
        """Begin to write a checkpoint of the state as it is now, and its weights as the best ones if they are.

        Waits for the write before it. Raises the error of that one.
        """
        self.finish()
        snapshot = state.snapshot(self._memory)

        def write() -> None:
            try:
                if best:  # before the checkpoint, which counts on their being there
                    weights = snapshot.weights()
                    save_weights(
                        self._run.best_weights,
                        state.average.model,
                        noise=self._noise,
                        recorruption=self._recorruption,
                        tensors=weights,
                    )
                snapshot.save(self._run.checkpoints)
            except Exception as error:
                self._failure = error

        self._thread = threading.Thread(target=write, name="checkpoint", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for the write under way. Raises the error that it ended with."""
        if self._thread is not None:
            self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _under_way(self) -> bool:
        return self._thread is not None and self._thread.is_alive()
