"""The one exception for a user's mistake. The command line prints it on one line and exits with
code 2.
"""


class UserError(Exception):
    """A setting, path or input that the user has to change.

    Args:
        setting: The setting that is at fault, as the user would type it (`data.url=...`).
        wrong: What is wrong with it.
        remedy: What would be right.
    """

    def __init__(self, setting: str, wrong: str, remedy: str) -> None:
        self.setting, self.wrong, self.remedy = setting, wrong, remedy
        super().__init__(setting, wrong, remedy)  # all of them, so that it can be pickled

    def __str__(self) -> str:
        return f"{self.setting}: {self.wrong}; {self.remedy}"


class RunError(Exception):
    """Work that cannot go on though the settings are right: the line says what happened and what to
    do.
    """
