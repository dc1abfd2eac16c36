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


conv_templates = {"llava_v0": Conversation("Answer.", ("Human", "Assistant"), [])}
