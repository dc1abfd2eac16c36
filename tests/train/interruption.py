"""What a training leaves that was killed behind one of its checkpoints."""

import json
import shutil

from llava_forgery.train.run_record import RECORD


def interrupt(whole, cut, checkpoint):
    """Copy a training's folder as it was when the checkpoint had been written.

    Args:
        whole: Of a finished training.
        cut: To write.
        checkpoint: Its name.
    """
    shutil.copytree(whole / checkpoint, cut / checkpoint)
    record = json.loads((whole / RECORD).read_text())
    (cut / RECORD).write_text(json.dumps({**record, "finished": False}))
