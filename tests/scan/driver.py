"""The driver of a scan as a process of its own, whose workers are slow and can be told to die.

``python -m tests.scan.driver ADDRESS ARCHIVE OUT MODEL HOST KILLS [WORKERS]``: ADDRESS is that of
a cluster, or ``local``; in the folder KILLS, files ``0`` to ``9`` are made by workers that kill
themselves.
"""

import os
import signal
import sys
import time
from pathlib import Path

from llava_forgery.faces.video import FrameChoice
from llava_forgery.scan import engine
from llava_forgery.scan.engine import Cluster
from llava_forgery.scan.models import ModelSettings
from llava_forgery.scan.plan import Selection
from llava_forgery.scan.reader import ReadSettings
from llava_forgery.scan.run import scan_archive
from llava_forgery.scan.stages import DetectStage, ReadStage, ScanSettings, list_stages

DEATHS = 10


class MortalRead(ReadStage):
    """Dies at its second block, as long as there are deaths left."""

    def __init__(self, settings, registry, kills):
        super().__init__(settings, registry)
        self.kills, self.blocks = kills, 0

    def __call__(self, table):
        if self.blocks == 1:
            die(self.kills)
        time.sleep(0.2)
        self.blocks += 1
        return super().__call__(table)


class MortalDetect(DetectStage):
    """The same of the detector, whose block is judged when it dies."""

    def __init__(self, settings, asks, provenance, kills):
        super().__init__(settings, asks, provenance)
        self.kills, self.blocks = kills, 0

    def __call__(self, table):
        judged = super().__call__(table)
        self.blocks += 1
        if self.blocks == 2:
            die(self.kills)
        return judged


def die(kills: str) -> None:
    for death in range(DEATHS):
        try:
            os.close(os.open(Path(kills) / str(death), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        os.kill(os.getpid(), signal.SIGKILL)


def settings(model: str, host: str) -> ScanSettings:
    read = ReadSettings(FrameChoice(3), cropped=True)
    return ScanSettings(ModelSettings(model, host, device="cpu"), "none", read)


def main(address, archive, out, model, host, kills, workers=1) -> None:
    stages = {ReadStage: MortalRead, DetectStage: MortalDetect}
    engine.list_stages = lambda *given: [
        (stages[kind], (*arguments, kills)) for kind, arguments in list_stages(*given)
    ]
    cluster = Cluster(None if address == "local" else address, workers=int(workers), block=2)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    summary = scan_archive(
        [archive], Path(out), settings(model, host), Selection(), cluster, shard_seconds=0
    )
    print("\n".join(summary.lines()))
    sys.exit(130 if summary.interrupted else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
