"""Commands that convert adapters and third-party weights to our formats."""

from pathlib import Path
from typing import Annotated

import typer

from llava_forgery.cli.app import app, convert, notice
from llava_forgery.cli.options import (
    AllowDownload,
    BaseModel,
    Dtype,
    Model,
    Out,
    Seed,
    writable_file,
)

Checkpoint = Annotated[Path, typer.Argument(metavar="CKPT", help="Written by torch.save.")]

MaxShardSize = Annotated[
    str, typer.Option("--max-shard-size", help="Maximum size of a weights file, such as 5GB.")
]


@convert.command("merge-llava")
def merge_llava(
    model: Model,
    out: Out,
    base_model: BaseModel = None,
    dtype: Dtype = "auto",
    allow_download: AllowDownload = False,
) -> None:
    """Write a whole LLaVA model: the host with LoRA merged into its weights, and the skill.

    LLaVA's load_pretrained_model reads it after llava_forgery.register().
    """
    from llava_forgery.hosts.llava.loading import merge_llava as merge

    merge(model, out, base_model, dtype, allow_download)
    notice(f"Wrote {out}")


@convert.command("adapter")
def convert_adapter(
    model: Model,
    out: Out,
    base_model: Annotated[
        str | None,
        typer.Option(
            "--base-model",
            help="Folder or hub name of the same host in the other backend; without it, an adapter "
            "of format 1 is converted to the current format.",
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option("--template", help="For LLaVA's layout: name in LLaVA's conv_templates."),
    ] = None,
    allow_download: AllowDownload = False,
) -> None:
    """Convert an adapter between llava and transformers, or to the current format."""
    from llava_forgery.hosts.layouts import convert_adapter as convert

    layout = convert(model, out, base_model, template, allow_download)
    notice(f"Wrote {out}, in the layout of {layout}")


@convert.command("export-transformers")
def export_transformers(
    model: Model,
    out: Out,
    base_model: BaseModel = None,
    dtype: Dtype = "auto",
    max_shard_size: MaxShardSize = "5GB",
    allow_download: AllowDownload = False,
) -> None:
    """Write host, LoRA, detector and learner as one checkpoint that transformers loads.

    AutoModelForImageTextToText and pipeline read it with trust_remote_code=True, or after
    llava_forgery.register_auto_classes().
    """
    from llava_forgery.hosts.transformers.export import export_transformers as export

    export(
        model,
        out,
        base_model,
        dtype=dtype,
        allow_download=allow_download,
        max_shard_size=max_shard_size,
    )
    notice(f"Wrote {out}")


@convert.command("export-language-model")
def export_language_model(
    model: Model,
    out: Out,
    base_model: BaseModel = None,
    dtype: Dtype = "auto",
    max_shard_size: MaxShardSize = "5GB",
    allow_download: AllowDownload = False,
) -> None:
    """Write only the host's language model, with LoRA merged, for vLLM with prompt embeddings.

    scripts/vllm_request.py writes the requests that it answers.
    """
    from llava_forgery.hosts.language_model import export_language_model as export

    export(
        model,
        out,
        base_model,
        dtype=dtype,
        allow_download=allow_download,
        max_shard_size=max_shard_size,
    )
    notice(f"Wrote {out}")


@convert.command("placement")
def convert_placement(
    model: Model,
    placement: Annotated[
        str | None,
        typer.Option(
            help="always: after every image, also in prompts of programs unaware of the skill; "
            "placeholders: where a prompt holds <forgery>."
        ),
    ] = None,
    crop: Annotated[
        str | None,
        typer.Option(
            help="For pictures from such programs: face (find it and cut it out) or none."
        ),
    ] = None,
) -> None:
    """Change the position of the skill's embeddings in prompts; the folder is changed in place."""
    from llava_forgery.hosts.layouts import change_placement

    change_placement(model, placement, crop)
    notice(f"Changed {model}")


@convert.command("imagebind")
def import_imagebind(checkpoint: Checkpoint, out: Out) -> None:
    """Convert ImageBind's image and text towers to a folder that open_clip reads."""
    from llava_forgery.convert.imagebind import import_imagebind as run

    run(checkpoint, out)


@convert.command("lvlm-dfd")
def import_lvlm_dfd(
    checkpoint: Checkpoint,
    out: Out,
    imagebind: Annotated[
        Path | None,
        typer.Option(help="imagebind_huge.pth, for a checkpoint without ImageBind's own weights."),
    ] = None,
) -> None:
    """Convert the official LVLM-DFD checkpoint to detector, learner and LoRA."""
    from llava_forgery.convert.lvlm_dfd import import_lvlm_dfd as run

    run(checkpoint, out, imagebind)


@convert.command("small-llava")
def make_small_llava(out: Out, seed: Seed = 0) -> None:
    """Build the demo's host: a small LLaVA around SmolLM2-135M-Instruct."""
    from llava_forgery.hosts.small_llava import build_small_llava

    build_small_llava(out, seed)


@convert.command("efficientnet")
def import_efficientnet(
    out: Annotated[
        Path, typer.Option("--out", help="safetensors file to write.", callback=writable_file)
    ],
) -> None:
    """Convert the trunk's ImageNet weights to safetensors."""
    from llava_forgery.convert.sources import import_efficientnet as run

    run(out)


@app.command("push")
def push(
    folder: Annotated[
        Path,
        typer.Argument(help="An adapter, a detector, a pseudo-word or an exported checkpoint."),
    ],
    repository: Annotated[str, typer.Argument(help="owner/name on the hub.")],
    revision: Annotated[str | None, typer.Option(help="Branch, created if missing.")] = None,
    private: Annotated[bool, typer.Option(help="Make a new repository private.")] = False,
    message: Annotated[str | None, typer.Option(help="Commit message.")] = None,
) -> None:
    """Upload a folder to the Hugging Face hub: safetensors, JSON and text, never a pickle.

    Commands accept owner/name or owner/name@revision wherever they take the folder of a model.
    """
    from llava_forgery.hub import push_folder

    typer.echo(
        push_folder(
            folder,
            repository,
            revision=revision,
            private=private or None,
            commit_message=message,
        )
    )
