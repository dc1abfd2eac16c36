"""Templates."""

import dataclasses
from enum import Enum, auto


class SeparatorStyle(Enum):
    SINGLE = auto()


@dataclasses.dataclass
class Conversation:
    system: str
    roles: tuple
    messages: list
    offset: int = 0
    sep_style: SeparatorStyle = SeparatorStyle.SINGLE
    sep: str = "###"
    sep2: str | None = None
    version: str = "Unknown"

    def copy(self):
        return dataclasses.replace(self, messages=[list(m) for m in self.messages])

    def append_message(self, role, message):
        self.messages.append([role, message])

    def get_prompt(self):
        said = [f"{r}:" if m is None else f"{r}: {m}{self.sep}" for r, m in self.messages]
        return self.system + self.sep + "".join(said)


conv_templates = {"llava_v0": Conversation("Answer.", ("Human", "Assistant"), [])}
