"""Simulated forgeries and their pristine faces as two folders of pictures, ``real/`` and ``fake/``.

    llava-forgery data forge --faces FACES --out DATA

They are for programs that read folders, such as the pseudo-word's training. The metadata of every
picture says whether it is a simulated forgery or a crop of a photograph.
"""

from os import PathLike
from pathlib import Path

from PIL import Image

from llava_forgery.constants import FAKE, LABEL_NAMES, REAL
from llava_forgery.data.samples import FORGED, PRISTINE
from llava_forgery.files import atomic_path, check_output_folder, write_json
from llava_forgery.images import save_png
from llava_forgery.progress import progress
from llava_forgery.qa.templates import join_regions
from llava_forgery.simulate.pairs import FacePairs
from llava_forgery.tensors import to_bytes

# Users' own data are in folders named real and fake as well: this file identifies ours.
SUMMARY = "forgeries.json"
ENTRIES = frozenset({SUMMARY, *LABEL_NAMES})


def forge_folders(pairs: FacePairs, output_dir: str | PathLike) -> None:
    """Write ``fake/NAME-00000.png`` and ``real/NAME-00000.png`` of each pair, and a summary.

    Args:
        pairs: Pairs to write.
        output_dir: Output folder; an earlier output is replaced as a whole.

    Raises:
        ValueError: The folder holds anything else.
    """
    sources = pairs.faces["source"]
    check_output_folder(output_dir, SUMMARY, entries=ENTRIES)
    with atomic_path(output_dir) as temporary:
        for index in progress(range(len(pairs)), "forge", "pair"):
            pair = pairs[index]
            source = Path(sources[pair.row]).name
            name = f"{Path(source).stem}-{index:05d}.png"
            note = FORGED.format(regions=join_regions(pair.regions))
            for label, image, text in (
                (FAKE, pair.forged, note),
                (REAL, pair.pristine, PRISTINE.format(source=source)),
            ):
                path = temporary / LABEL_NAMES[label] / name
                save_png(Image.fromarray(to_bytes(image)), path, text)
        write_json(temporary / SUMMARY, {"pairs": len(pairs)})
