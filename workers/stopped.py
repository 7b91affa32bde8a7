"""The run cannot go on, and the message says all there is to say."""


class RunStopped(RuntimeError):
    """Ends the run without a traceback: what is wrong, the numbers, what to do."""


class WorkerDied(RunStopped):
    """A worker's process is gone. What it held is in the newest checkpoint, from which the run can go on by itself."""
