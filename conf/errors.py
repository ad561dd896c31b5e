"""The exceptions that the command line prints as one line, and the exit codes that they mean."""

from conf.secrets import without_credentials


class UserError(Exception):
    """A setting, path or input that the user has to change; exit code 2.

    Args:
        setting: The setting that is at fault, as the user would type it (`data.url=...`).
        wrong: What is wrong with it.
        remedy: What would be right.
    """

    exit_code = 2

    def __init__(self, setting: str, wrong: str, remedy: str) -> None:
        self.setting, self.wrong, self.remedy = setting, wrong, remedy
        super().__init__(setting, wrong, remedy)  # all of them, so that it can be pickled

    def __str__(self) -> str:
        return without_credentials(f"{self.setting}: {self.wrong}; {self.remedy}")


class RunError(Exception):
    """Right settings, yet the work cannot go on; says what happened and what to do. Exit code 1."""

    exit_code = 1


class Diverged(RunError):
    """A training's numbers are not finite, and would not be in another try; exit code 3."""

    exit_code = 3


class Preempted(BaseException):
    """Told to stop, with everything saved that there was; exit code 75, for requeueing.

    Not an Exception, as KeyboardInterrupt is none: it may come from a signal at any place, and no
    library's `except Exception` shall hold it up.
    """

    exit_code = 75
