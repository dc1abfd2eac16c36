"""Commands for adapters of the ``llava`` package's models."""

from typing import Annotated

import typer

from llava_forgery.cli.app import app, be_quiet
from llava_forgery.cli.options import Dtype, Model, Out


@app.command()
def merge_llava(
    model: Model,
    out: Out,
    host: Annotated[
        str | None,
        typer.Option("--host", help="Its host's folder or hub name; default: the one it names."),
    ] = None,
    dtype: Dtype = "auto",
) -> None:
    """Write a whole LLaVA model: the host with LoRA in its weights, and the skill beside it.

    LLaVA's load_pretrained_model reads it after llava_forgery.hosts.llava.register.register().
    """
    from llava_forgery.hosts.llava.loading import merge_llava as merge

    be_quiet()
    merge(model, out, host, dtype)
    typer.echo(f"Wrote {out}")


@app.command()
def convert_adapter(
    model: Model,
    host: Annotated[
        str,
        typer.Option("--host", help="Folder or hub name of the same host in the other package."),
    ],
    out: Out,
    template: Annotated[
        str | None,
        typer.Option("--template", help="Into LLaVA's layout: name in LLaVA's conv_templates."),
    ] = None,
) -> None:
    """Move an adapter between the llava package and transformers, whichever it is not in yet."""
    from llava_forgery.hosts.layouts import convert_adapter as convert

    be_quiet()
    layout = convert(model, host, out, template)
    typer.echo(f"Wrote {out}, in the layout of {layout}")
