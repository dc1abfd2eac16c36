"""What a server allows, and for how long it keeps what."""

import ipaddress
from dataclasses import dataclass, fields

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Settings:
    """Limits of a server; every one of them holds for each request unless it says otherwise.

    Raises:
        ValueError: A limit below 1, or an address beyond the loopback without a token.
    """

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    token: str | None = None
    """What clients must send as ``Authorization: Bearer TOKEN``; None asks for nothing."""
    allow_urls: bool = False
    """Whether pictures are fetched from public http and https addresses."""
    max_bytes: int = 64 * 2**20
    """Of a request's body, and of what is fetched."""
    max_bytes_at_once: int = 512 * 2**20
    """Of all bodies that are held at once."""
    max_frames: int = 256
    """Of a video that are judged."""
    max_seconds: int = 600
    """Length of a video."""
    max_faces: int = 64
    """Of a picture that are judged."""
    max_prompt: int = 4000
    """Characters of all questions and answers of a dialogue."""
    max_tokens: int = 512
    """Of an answer."""
    max_requests: int = 128
    """Requests that are worked on at once; further ones get 429."""
    upload_seconds: int = 30
    """In which a body must have arrived."""
    queue: int = 256
    """Faces that wait; further ones get 429."""
    dialogues: int = 8
    """Dialogues whose caches are kept."""
    jobs: int = 16
    """Videos that wait, run or are kept; further ones get 429."""
    job_seconds: int = 600
    """For which a finished job's result is kept."""
    inline_frames: int = 8
    """Videos of which more frames are to be judged become jobs."""
    drain_seconds: int = 60
    """After SIGTERM, for what runs."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" or field.type is int:
                low = 0 if field.name in ("port", "inline_frames", "drain_seconds") else 1
                if value < low:
                    raise ValueError(f"expected {field.name} of {low} or more, got {value}")
        if self.token is not None and not self.token.strip():
            raise ValueError("the token is empty; leave it out, or give one")
        if not self.is_loopback and not self.token:
            raise ValueError(
                f"listening on {self.host}, beyond this machine, needs a token that clients must "
                "send; give --token, or set LLAVA_FORGERY_TOKEN"
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
